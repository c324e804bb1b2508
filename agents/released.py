"""AdaGen's released policies as actors of our environments (arXiv 2603.06993)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from genenv.checkpoints import read_state_dict, torch_device
from genenv.envs import diffusion, flow, maskgit, var
from genenv.models.policy import released_network
from genenv.policies import PolicyActor
from genenv.releases import RELEASES
from genenv.schedules import ScheduleParam


@dataclasses.dataclass(frozen=True)
class ReleasedPolicy:
    """What one of AdaGen's released policies was trained on.

    Attributes:
        env_id, env_kwargs: its task; `observe` and `device` are added.
        params: the schedule parameters, whose spans turn its raw outputs into actions.
    """

    env_id: str
    env_kwargs: dict[str, Any]
    params: tuple[ScheduleParam, ...]


RELEASED_POLICIES = {
    "maskgit_policy": ReleasedPolicy(
        "AdaGen/MaskGIT-v0",
        {"backbone": "imagenet256-maskgit-l", "num_steps": 16, "smoothing": 0.8},
        maskgit.schedule_params(16, guidance_weight=1.0),
    ),
    "dit_policy": ReleasedPolicy(
        "AdaGen/DiT-v0",
        {"backbone": "imagenet256-dit-xl-2", "num_steps": 16, "smoothing": 0.4},
        diffusion.schedule_params(17),
    ),
    "sit_policy": ReleasedPolicy(
        "AdaGen/SiT-v0",
        {"backbone": "imagenet256-sit-xl-2", "num_steps": 16, "smoothing": 0.8},
        flow.schedule_params(17),
    ),
    "var_d16_policy": ReleasedPolicy(
        "AdaGen/VAR-v0",
        {"backbone": "imagenet256-var-d16", "num_steps": 10, "top_k_rule": "released"},
        var.schedule_params(10, 4096),
    ),
    "var_d30_policy": ReleasedPolicy(
        "AdaGen/VAR-v0",
        {"backbone": "imagenet256-var-d30", "num_steps": 10, "top_k_rule": "released"},
        var.schedule_params(10, 4096),
    ),
}


def load_official_policy(path: Path | str, name: str | None = None, device: str = "cpu") -> PolicyActor:
    """Returns a released AdaGen policy as an actor: its raw outputs, unbounded, in the units of our actions.

    The released networks answer in the bijectors' unbounded space before smoothing, so an action is the output over
    the parameter's span. They see the features and the step, not the class.

    Args:
        path: the released file, or a training checkpoint of AdaNAT with the same network inside.
        name: one of `RELEASED_POLICIES`; by default the file's own name.
        device: where the policy and its environment run.
    """
    path = Path(path)
    name = path.stem if name is None else name
    if name not in RELEASED_POLICIES:
        raise ValueError(f"name must be one of {', '.join(RELEASED_POLICIES)}, got {name!r}")
    if not path.is_file():
        raise ValueError(f"{path} is missing; download it from {RELEASES[name].page}")
    released = RELEASED_POLICIES[name]
    place = torch_device(device)
    policy = released_network(read_state_dict(path)).to(place)
    spans = torch.tensor([param.span for param in released.params], device=place)
    env_kwargs = released.env_kwargs | {"observe": ["features", "step"], "device": device}
    return PolicyActor(released.env_id, env_kwargs, lambda observation: policy(observation) / spans)
