"""The environment: a batch of images generated in lockstep."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from genenv.contexts import ClassLabels
from genenv.protocols import Field, Observation, Sampler
from genenv.rng import BatchRng
from genenv.schedules import ActionDecoder

RENDER_MODES = ("rgb_array", "human")


class GenVectorEnv(VectorEnv):
    """N images, each an episode of exactly T decisions.

    Every step takes one action for each image and all episodes end together: `terminated` is true at step T,
    `truncated` never. The reward is 0; a reward wrapper pays one at T. The finished images are in `info["image"]`
    at T and their contexts in `info["context"]`. With `autoreset_mode="SameStep"` both are in
    `info["final_info"]`, and the last observation in `info["final_obs"]`.

    Args:
        sampler: the generator.
        contexts: which label each image gets.
        num_envs: N.
        observe: names of the observation's entries: the sampler's fields, "step", "context", "prev_action".
        action_mode: "residual" moves the hand-crafted schedule, zero leaving it; "physical" sets the parameters.
        autoreset_mode: "SameStep", "NextStep" or "Disabled".
        output: "torch" or "numpy".
        device: where the sampler runs.
        render_mode: None, "rgb_array" or "human".
        frame: draws (image (C, H, W), undecided (h, w)) as uint8 (H', W', 3).
        show: displays a tuple of frames.
    """

    def __init__(
        self,
        sampler: Sampler,
        contexts: ClassLabels,
        num_envs: int = 1,
        *,
        observe: Sequence[str] | None = None,
        action_mode: str = "residual",
        autoreset_mode: str | AutoresetMode = AutoresetMode.SAME_STEP,
        output: str = "torch",
        device: torch.device | str = "cpu",
        render_mode: str | None = None,
        frame: Callable[[Tensor, Tensor], np.ndarray] | None = None,
        show: Callable[[tuple[np.ndarray, ...]], None] | None = None,
    ):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        if output not in ("torch", "numpy"):
            raise ValueError(f"output must be 'torch' or 'numpy', got {output!r}")
        if render_mode is not None and render_mode not in RENDER_MODES:
            raise ValueError(f"render_mode must be None or one of {RENDER_MODES}, got {render_mode!r}")
        try:
            self.autoreset_mode = AutoresetMode(autoreset_mode)
        except ValueError:
            modes = ", ".join(repr(mode.value) for mode in AutoresetMode)
            raise ValueError(f"autoreset_mode must be one of {modes}, got {autoreset_mode!r}") from None
        self.metadata = {
            "autoreset_mode": self.autoreset_mode,
            "render_modes": list(RENDER_MODES),
            "render_fps": 4,
        }
        self.sampler, self.contexts, self.num_envs = sampler, contexts, num_envs
        self.output, self.device, self.render_mode = output, torch.device(device), render_mode
        self.decoder = ActionDecoder(sampler.params, action_mode, device)
        self._frame, self._show = frame, show

        num_params, largest = len(sampler.params), float(torch.finfo(torch.float32).max)
        if action_mode == "residual":
            low, high = np.full(num_params, -1.0), np.full(num_params, 1.0)
        else:
            low, high = np.array([p.limits for p in sampler.params]).T
        self.single_action_space = spaces.Box(
            low.astype(np.float32), high.astype(np.float32), dtype=np.float32
        )
        available: dict[str, gym.Space] = {name: _box(field) for name, field in sampler.fields.items()}
        available["step"] = spaces.Discrete(sampler.horizon + 1)
        available["context"] = spaces.Discrete(contexts.num_classes)
        available["prev_action"] = _box(Field((num_params,), torch.float32, -largest, largest))
        partial_result = next(iter(sampler.fields))
        self.observe = tuple(observe) if observe is not None else (partial_result, "step", "context")
        for name in self.observe:
            if name not in available:
                raise ValueError(f"observe must name some of {', '.join(available)}, got {name!r}")
        self.single_observation_space = spaces.Dict({name: available[name] for name in self.observe})
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)

        self._state: Any = None
        self._shown: Any = None
        self._step = sampler.horizon
        self._rng = BatchRng(torch.zeros(0, dtype=torch.int64), episode=-1)

    @property
    def current_step(self) -> int:
        """Decisions taken in the current episode, T where it is over."""
        return self._step

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every environment.

        Args:
            seed: an integer gives image i the seed `seed + i`; a sequence gives each its own. Without one, the
                images go on to the next episode of their seeds.
            options: "context", a label or N labels, in place of the environment's own choice; "reset_mask", which
                must be all True, since episodes run in lockstep.
        """
        options = options or {}
        unknown = set(options) - {"context", "reset_mask"}
        if unknown:
            raise ValueError(f"reset options must be among 'context', 'reset_mask', got {sorted(unknown)}")
        mask = options.get("reset_mask")
        if mask is not None and not np.all(np.asarray(mask)):
            raise ValueError(
                "reset_mask must be all True: the episodes of this environment run in lockstep, "
                f"got {np.asarray(mask).tolist()}"
            )
        if seed is not None or self._rng.episode < 0:
            self._rng = BatchRng(self._seeds(seed), episode=0)
        else:
            self._rng = BatchRng(self._rng.seeds, episode=self._rng.episode + 1)
        self._begin(options.get("context"))
        self._show_if_human()
        return self._convert(self._observe()), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one decision for every image.

        Args:
            actions: (N, A).

        Raises:
            gymnasium.error.ResetNeeded: after the end of an episode, with autoreset disabled.
            ValueError: if the actions have the wrong shape, are not finite or not legal.
        """
        if self._step == self.sampler.horizon:
            if self._state is None or self.autoreset_mode is not AutoresetMode.NEXT_STEP:
                raise gym.error.ResetNeeded(
                    f"the episode is over after {self.sampler.horizon} steps: call reset()"
                    if self._state is not None
                    else "call reset() before step()"
                )
            self._rng = BatchRng(self._rng.seeds, episode=self._rng.episode + 1)
            self._begin(None)
            self._show_if_human()
            return self._transition(self._observe(), done=False, info={})

        actions = self.check_actions(actions)
        params = self.decoder(actions, self._step)
        with torch.no_grad():
            self._state = self.sampler.advance(self._state, params, self._rng)
        self._step += 1
        self._prev_action = actions.float().clone()  # the caller may reuse its tensor
        self._show_if_human()
        observation = self._observe()
        info = self.sampler.diagnostics(self._state)
        info |= {f"schedule/{name}": value.float() for name, value in params.items()}
        done = self._step == self.sampler.horizon
        if done:
            info |= {"image": self._images(), "context": self._state.context}
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                info = {"final_obs": observation, "final_info": self._masked(info)}
                self._rng = BatchRng(self._rng.seeds, episode=self._rng.episode + 1)
                self._begin(None)  # render() goes on showing the finished image
                observation = self._observe()
        return self._transition(observation, done, self._masked(info))

    def render(self) -> tuple[np.ndarray, ...] | None:
        """Draws each image's partial result beside its open places, (H', W', 3) uint8.

        After an automatic reset this is still the finished image, until the next step. In "human" mode the frames
        are shown in a window or notebook instead of returned.
        """
        if self.render_mode is None:
            gym.logger.warn("render() needs render_mode='rgb_array' or 'human' in gym.make()")
            return None
        if self._shown is None:
            raise gym.error.ResetNeeded("call reset() before render()")
        if self._frame is None or self._show is None:
            raise ValueError("this environment was made without a renderer; make it with gym.make")
        with torch.no_grad():
            images = self.sampler.decode(self._shown).cpu()
            undecided = self.sampler.undecided(self._shown).cpu()
        frames = tuple(self._frame(image, open_) for image, open_ in zip(images, undecided, strict=True))
        if self.render_mode == "human":
            self._show(frames)
            return None
        return frames

    def _show_if_human(self) -> None:
        self._shown = self._state
        if self.render_mode == "human":
            self.render()

    def _seeds(self, seed: int | Sequence[int] | None) -> Tensor:
        if seed is None:
            seeds = self.np_random.integers(2**31, size=self.num_envs).tolist()
        elif isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
            seeds = range(int(seed), int(seed) + self.num_envs)
        else:
            seeds = [int(s) for s in seed]
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed must be one integer or {self.num_envs} of them, got {len(seeds)}")
        return torch.tensor(list(seeds), dtype=torch.int64, device=self.device)

    def _begin(self, labels: Any) -> None:
        if labels is None:
            context = self.contexts.draw(self._rng)
        else:
            labels = labels.cpu() if isinstance(labels, Tensor) else labels
            given = np.asarray(labels).reshape(-1).tolist()
            self.contexts.check(given)
            if len(given) not in (1, self.num_envs):
                raise ValueError(
                    f"options['context'] must hold 1 or {self.num_envs} labels, got {len(given)}"
                )
            context = torch.tensor(given, dtype=torch.int64, device=self.device).expand(self.num_envs).clone()
        with torch.no_grad():
            self._state = self.sampler.start(context, self._rng)
        self._step = 0
        self._prev_action = torch.zeros(self.num_envs, len(self.sampler.params), device=self.device)

    def check_actions(self, actions: Tensor | np.ndarray) -> Tensor:
        """Returns actions (N, A) as a tensor on the device; ValueError for a wrong shape, type or device."""
        actions = torch.as_tensor(actions)
        expected = (self.num_envs, len(self.sampler.params))
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}")
        if not actions.is_floating_point():
            raise ValueError(f"actions must be floating point, got {actions.dtype}")
        if actions.device.type != self.device.type and self.output == "torch":
            raise ValueError(
                f"actions must be on {self.device}, got {actions.device}; move them with .to(env.device)"
            )
        return actions.detach().to(self.device)

    def _observe(self) -> Observation:
        fields = self.sampler.observe(self._state, self.observe)
        n = self.num_envs
        fields["step"] = torch.full((n,), self._step, device=self.device)
        fields["context"] = self._state.context
        fields["prev_action"] = self._prev_action
        return {name: fields[name] for name in self.observe}

    def _images(self) -> Tensor:
        with torch.no_grad():
            return self.sampler.decode(self._state)

    def _masked(self, info: dict[str, Any]) -> dict[str, Any]:
        """Adds Gymnasium's `_name` masks, which say whose entry is set: everybody's, in lockstep."""
        everyone = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        return info | {f"_{name}": everyone for name in info}

    def _transition(self, observation: Observation, done: bool, info: dict[str, Any]) -> tuple:
        reward = torch.zeros(self.num_envs, device=self.device)
        terminated = torch.full((self.num_envs,), done, device=self.device)
        truncated = torch.zeros_like(terminated)
        return tuple(self._convert(x) for x in (observation, reward, terminated, truncated, info))

    def _convert(self, value: Any) -> Any:
        if self.output == "torch":
            return value
        return to_numpy(value)


def to_numpy(value: Any) -> Any:
    """Returns a tensor, or nested dictionaries of tensors, as NumPy arrays of its own."""
    if isinstance(value, dict):
        return {name: to_numpy(entry) for name, entry in value.items()}
    return value.cpu().numpy().copy()


def _box(field: Field) -> spaces.Box:
    dtype = np.int64 if field.dtype == torch.int64 else np.float32
    return spaces.Box(field.low, field.high, field.shape, dtype)
