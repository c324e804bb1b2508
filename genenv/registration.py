"""The environment ids and their default keyword arguments."""

from __future__ import annotations

import difflib
import importlib
from typing import Any

import gymnasium as gym

ENTRY_POINT = "genenv.make:single"
VECTOR_ENTRY_POINT = "genenv.make:vector"
DEFAULT_ID = "AdaGen/MaskGIT-v0"
"""Where commands, agents and baselines are told none."""

PARADIGMS: dict[str, tuple[str, dict[str, Any]]] = {
    "AdaGen/MaskGIT-v0": ("genenv.envs.maskgit", {"num_steps": 4}),
    "AdaGen/VAR-v0": ("genenv.envs.var", {}),
    "AdaGen/LlamaGen-v0": ("genenv.envs.raster_ar", {}),
    "AdaGen/VQGAN-v0": ("genenv.envs.vqgan", {}),
    "AdaGen/DiT-v0": ("genenv.envs.diffusion", {"num_steps": 8}),
    "AdaGen/SiT-v0": ("genenv.envs.flow", {"num_steps": 8}),
    "PolicyTuning/Tokens-v0": ("genenv.envs.tokens", {}),
    "AdaScope/Denoising-v0": ("genenv.envs.denoising", {}),
    "ART/Clock-v0": ("genenv.envs.clock", {"num_steps": 8, "reward": "none"}),
    "ART/GaussianMixture-v0": (
        "genenv.envs.gaussian_mixture",
        {"num_steps": 10, "reward": "none", "backbone": "normal"},
    ),
}
"""The package's own ids -> the module with their `make_sampler`, and their default keyword arguments, where these are
not `backbone="digits"`, `num_steps=None` (the paradigm's own number) and `reward="default"`."""


def register(env_id: str, sampler: str, **kwargs: Any) -> None:
    """Registers an id with Gymnasium, so that everything in genenv knows it; a known id keeps what it has.

    Args:
        env_id: such as "Mine/Toy-v0".
        sampler: "module:function" that makes the sampler: (backbone, num_steps, device, dtype, needs_features, compile,
            and parameters of its own, which become keyword arguments of the id) -> `genenv.protocols.Sampler`.
        kwargs: default keyword arguments: `backbone`, and whatever differs from `genenv.make.vector`'s defaults.
    """
    if env_id not in gym.registry:
        gym.register(
            env_id,
            entry_point=ENTRY_POINT,
            vector_entry_point=VECTOR_ENTRY_POINT,
            kwargs={"num_steps": None, "reward": "default"} | kwargs | {"sampler": sampler},
        )


def register_ids() -> None:
    """Registers every id of the package that is not registered yet."""
    for env_id, (module, kwargs) in PARADIGMS.items():
        register(env_id, f"{module}:make_sampler", **{"backbone": "digits"} | kwargs)


def env_ids() -> list[str]:
    """Returns the registered ids that are environments of this suite, the package's own first."""
    ours = [env_id for env_id, spec in gym.registry.items() if spec.entry_point == ENTRY_POINT]
    return sorted(ours, key=lambda env_id: (env_id not in PARADIGMS, ours.index(env_id)))


def defaults(env_id: str) -> dict[str, Any]:
    """Returns the default keyword arguments of an id, "sampler" included.

    Args:
        env_id: a registered id, or "module:id" of a module that registers it when it is imported.

    Raises:
        ValueError: if there is no such id, or it is not an environment of this suite.
    """
    module, _, name = env_id.rpartition(":")
    if module:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"env_id {env_id!r} cannot be loaded: {error}") from None
    if name not in env_ids():
        near = difflib.get_close_matches(name, env_ids(), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"env_id must be one of {', '.join(env_ids())}, got {env_id!r}{hint}")
    return dict(gym.spec(name).kwargs)
