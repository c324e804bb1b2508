"""Gymnasium environments in which a frozen image generator is steered by its schedule.

Importing this package registers the ids, so that `gymnasium.make("AdaGen/MaskGIT-v0")` works. It does not import
torch: that is loaded when an environment is made.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from genenv.registration import env_ids, register, register_ids

if TYPE_CHECKING:
    from genenv.policies import PolicyActor

__version__ = "0.1.0"
__all__ = ["__version__", "env_ids", "load_policy", "register"]


def load_policy(source: str | Path, device: str = "cpu") -> PolicyActor:
    """Returns a trained policy as an actor: that of an id, or of a file; see `genenv.policies.load_policy`."""
    from genenv import policies

    return policies.load_policy(source, device)


register_ids()
