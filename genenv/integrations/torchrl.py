"""TorchRL: the vector environment as an `EnvBase` whose tensors stay on the device."""

from __future__ import annotations

from typing import Any

from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from genenv.vector_env import unwrapped

try:
    from torchrl.envs import GymWrapper  # pyright: ignore[reportMissingImports]
except ImportError:
    raise ImportError("genenv.integrations.torchrl needs TorchRL: pip install torchrl") from None


class GenTorchRLEnv(GymWrapper):
    """All images of a vector environment as one TorchRL environment of batch size (N,).

    It differs from TorchRL's own `GymWrapper` in that actions arrive as tensors and rewards are (N, 1), as TorchRL's
    transforms expect them: those of a tensor (N,) `RewardSum` silently makes N x N.

        env = GenTorchRLEnv(gym.make_vec("AdaGen/MaskGIT-v0", num_envs=64, autoreset_mode="Disabled"))
        env.rollout(8, break_when_any_done=False)

    Args:
        vector_env: a GenVectorEnv or wrappers around one, with autoreset "Disabled" and output "torch".
        categorical_action_encoding: give choices, such as the class, as numbers instead of one-hot.
        kwargs: what TorchRL's metaclass adds.

    Raises:
        ValueError: for any other environment.
    """

    def __init__(self, vector_env: VectorEnv, categorical_action_encoding: bool = False, **kwargs: Any):
        inner = unwrapped(vector_env)
        if inner.autoreset_mode is not AutoresetMode.DISABLED:
            raise ValueError(
                f"autoreset_mode must be 'Disabled' for TorchRL, which resets by itself, got "
                f"{inner.autoreset_mode.value!r}"
            )
        if inner.output != "torch":
            raise ValueError(f"output must be 'torch' for TorchRL's adapter, got {inner.output!r}")
        super().__init__(vector_env, categorical_action_encoding, device=inner.device, **kwargs)

    def read_action(self, action: Tensor) -> Tensor:
        """Returns the actions as the environment takes them: a choice as its number."""
        one_hot = self._env.action_space.shape != action.shape
        return action.long().argmax(-1) if one_hot else action

    def read_reward(self, reward: Tensor) -> Tensor:
        """Returns the rewards (N, 1)."""
        return reward[:, None]

    def _replace_reset(self, reset: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Adds nothing to a reset: episodes in lockstep are reset together."""
        return kwargs
