"""Trained policies, each in one file: the weights, and what they were trained on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from genenv.checkpoints import CheckpointError, load_state, replacing, torch_device
from genenv.json_text import parse_object
from genenv.models.policy import PolicyBackbone
from genenv.protocols import Observation
from genenv.schedules import SETTINGS

FOLDER = Path(str(files("genenv") / "assets" / "policies"))
"""Policies that come with the package, one for an id."""
SUFFIX = ".safetensors"
FORMAT = "genenv-policy-1"
TASK = (
    "backbone",
    "num_steps",
    "smoothing",
    "observe",
    "solver",
    "top_k_rule",
    "tokens_per_decision",
    *SETTINGS,
)
"""Keyword arguments of an id that a file may hold; none of them names a module."""


class PolicyActor:
    """A trained policy as an actor: observations to actions (N, A), without exploration.

    Attributes:
        env_id, env_kwargs: what it was trained on, for `gymnasium.make_vec(env_id, **env_kwargs)`.
    """

    def __init__(self, env_id: str, env_kwargs: dict[str, Any], act: Callable[[Observation], Tensor]):
        self.env_id, self.env_kwargs = env_id, env_kwargs
        self._act = act

    @torch.no_grad()
    def __call__(self, observation: Observation) -> Tensor:
        """Returns (N, A)."""
        return self._act(observation)


def save_policy(
    network: PolicyBackbone, env_id: str, env_kwargs: Mapping[str, Any], path: Path, about: str = ""
) -> None:
    """Writes a policy with what it acts on, under a temporary name first.

    Args:
        network: that acts by its outputs.
        env_id: without the module that registers it.
        env_kwargs: keyword arguments of the id, those of `TASK` alone; "device" is left out.
        path: ends in ".safetensors".
        about: how it was trained, in a few words.

    Raises:
        ValueError: if a keyword argument has no place in a file.
    """
    kwargs = {name: value for name, value in env_kwargs.items() if name != "device"}
    _check_task(kwargs, str(path))
    head = {"env_id": env_id, "env_kwargs": kwargs, "network": network.arguments, "about": about}
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    with replacing(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, "policy": json.dumps(head)})


def load_policy(source: str | Path, device: str = "cpu") -> PolicyActor:
    """Returns a trained policy as an actor.

    Args:
        source: an id of which the package has one, such as "AdaGen/DiT-v0" (`pretrained` lists them), or a file that
            `save_policy` wrote, as `policy.safetensors` of a run of `agents.adagen`.
        device: where it acts and its environment runs.

    Raises:
        ValueError: if there is no such policy.
        CheckpointError: if the file is damaged, or no policy's.
    """
    known = pretrained()
    path = FOLDER / _file(str(source)) if str(source) in known else Path(source)
    if not path.is_file():
        ids = f", or one of {', '.join(known)}" if known else ""
        raise ValueError(f"there is no policy {str(source)!r}: it must be a file of save_policy{ids}")
    head, tensors = _read(path)
    place = torch_device(device)
    try:
        arguments = head["network"] | {"head_dims": tuple(head["network"]["head_dims"])}
        with torch.device("meta"):
            network = PolicyBackbone(**arguments)
        env_id, env_kwargs = str(head["env_id"]), dict(head["env_kwargs"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} does not describe a policy: {error}") from None
    _check_task(env_kwargs, str(path))
    load_state(network, tensors, path)
    network = network.to(place).eval().requires_grad_(False)
    return PolicyActor(env_id, env_kwargs | {"device": device}, network)


def pretrained() -> list[str]:
    """Returns the ids of which the package has a trained policy."""
    return sorted(path.stem.replace("--", "/") for path in FOLDER.glob(f"*{SUFFIX}"))


def _file(env_id: str) -> str:
    return env_id.replace("/", "--") + SUFFIX


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns what a policy's file says of it, and its tensors."""
    try:
        with safe_open(path, framework="pt") as file:
            told = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error})") from None
    if told.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} must be a file of genenv.policies.save_policy, got one of format {told.get('format')!r}"
        )
    try:
        return parse_object(told["policy"], str(path)), tensors
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} does not describe a policy: {error}") from None


def _check_task(env_kwargs: Mapping[str, Any], where: str) -> None:
    """Raises a ValueError for a keyword argument that a file may not hold."""
    for name in env_kwargs:
        if name not in TASK:
            raise ValueError(f"{where}: a policy's file holds no {name!r}, only {', '.join(TASK)}")
