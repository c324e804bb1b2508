"""What the wrappers of a vector environment share."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from genenv.vector_env import unwrapped


class GenVectorWrapper(VectorWrapper):
    """A wrapper that knows the GenVectorEnv inside.

    Args:
        env: a GenVectorEnv or wrappers around one.

    Raises:
        ValueError: if it is another environment.
    """

    def __init__(self, env: VectorEnv):
        super().__init__(env)
        self._inner = unwrapped(env)

    @property
    def autoreset_mode(self) -> AutoresetMode:
        """When finished episodes start again; TorchRL asks the outermost wrapper."""
        return self._inner.autoreset_mode


def finished(info: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the infos of the episodes that a step has ended, in any autoreset mode, or None."""
    final = info.get("final_info", info)
    return final if "image" in final else None
