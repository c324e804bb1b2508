"""The environment ids and their default keyword arguments."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

IDS: dict[str, dict[str, Any]] = {
    "AdaGen/MaskGIT-v0": {
        "sampler": "genenv.envs.maskgit:make_sampler",
        "backbone": "digits",
        "num_steps": 4,
        "reward": "default",
    },
    "AdaGen/VAR-v0": {
        "sampler": "genenv.envs.var:make_sampler",
        "backbone": "digits",
        "num_steps": None,
        "reward": "default",
    },
    "AdaGen/LlamaGen-v0": {
        "sampler": "genenv.envs.raster_ar:make_sampler",
        "backbone": "digits",
        "num_steps": None,
        "reward": "default",
    },
    "AdaGen/DiT-v0": {
        "sampler": "genenv.envs.diffusion:make_sampler",
        "backbone": "digits",
        "num_steps": 8,
        "reward": "default",
    },
    "AdaGen/SiT-v0": {
        "sampler": "genenv.envs.flow:make_sampler",
        "backbone": "digits",
        "num_steps": 8,
        "reward": "default",
    },
}


def register_ids() -> None:
    """Registers every id that is not registered yet."""
    for env_id, kwargs in IDS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point="genenv.make:single",
                vector_entry_point="genenv.make:vector",
                kwargs=kwargs,
            )
