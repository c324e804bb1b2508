"""Gymnasium environments in which a frozen image generator is steered by its schedule.

Importing this package registers the ids, so that `gymnasium.make("AdaGen/MaskGIT-v0")` works. It does not import
torch: that is loaded when an environment is made.
"""

from genenv.registration import env_ids, register, register_ids

__version__ = "0.1.0"
__all__ = ["__version__", "env_ids", "register"]

register_ids()
