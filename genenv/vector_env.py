"""The environment: a batch of images generated in lockstep."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from genenv.contexts import Contexts
from genenv.fields import PREDICTED, Field, choice
from genenv.protocols import Context, Observation, Sampler
from genenv.rng import MAX_SEED, BatchRng, Stream

RENDER_MODES = ("rgb_array", "human")
RENDER_FPS = 4
STREAMS = {stream.name.lower(): stream for stream in Stream}
"""What `options["stream"]` names."""


class GenVectorEnv(VectorEnv):
    """N images, each an episode of exactly T decisions.

    Every step takes one action for each image and all episodes end together: `terminated` is true at step T,
    `truncated` never. The reward is 0; a reward wrapper pays one. The finished images are in `info["image"]` at T,
    their contexts in `info["context"]` and their groups in `info["group"]`. With `autoreset_mode="SameStep"` they are
    in `info["final_info"]`, and the last observation in `info["final_obs"]`.

    Args:
        sampler: the generator; it says what an action is.
        contexts: what each image is asked to show.
        num_envs: N.
        observe: names of the observation's entries: the sampler's fields, "step", "context", "prev_action"; None for
            all but "prev_action" and what a generator looks ahead for, "features" and "logits".
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
        contexts: Contexts,
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
            "render_fps": RENDER_FPS,
        }
        self.sampler, self.contexts, self.num_envs = sampler, contexts, num_envs
        self.output, self.device, self.render_mode = output, torch.device(device), render_mode
        if len(contexts) != sampler.num_contexts:
            raise ValueError(
                f"contexts must have a name for each of the generator's {sampler.num_contexts}, got {len(contexts)}"
            )
        self.actions = sampler.actions(action_mode, self.device)
        self._frame, self._show = frame, show

        self.single_action_space = _space(self.actions.field)
        fields = sampler.fields | {
            "step": choice(sampler.horizon + 1),
            "context": choice(len(contexts)),
            "prev_action": self.actions.legal,
        }
        available = {name: _space(field) for name, field in fields.items()}
        compact = [name for name in sampler.fields if name not in PREDICTED]
        self.observe = tuple(observe) if observe is not None else (*compact, "step", "context")
        for name in self.observe:
            if name not in available:
                raise ValueError(f"observe must name some of {', '.join(available)}, got {name!r}")
        self.single_observation_space = spaces.Dict({name: available[name] for name in self.observe})
        try:
            self.action_space = batch_space(self.single_action_space, num_envs)
            self.observation_space = batch_space(self.single_observation_space, num_envs)
        except (MemoryError, OverflowError, ValueError) as error:
            raise ValueError(
                f"num_envs must be a number of images that fit in memory, got {num_envs}: {error}"
            ) from None

        self._state: Any = None
        self._shown: Any = None
        self._step = sampler.horizon
        self._rng: BatchRng | None = None
        self._context = self._group = torch.zeros(0, dtype=torch.int64)

    @property
    def current_step(self) -> int:
        """Decisions taken in the current episode, T where it is over."""
        return self._step

    @property
    def rng(self) -> BatchRng:
        """The random streams of the current episode's images; exploration draws from them with `Purpose.POLICY`."""
        if self._rng is None:
            raise gym.error.ResetNeeded("call reset() before rng is asked for")
        return self._rng

    @property
    def context(self) -> Context:
        """What the current episode's images are asked to show, (N,)."""
        return self._context

    @property
    def state(self) -> Any:
        """The sampler's state of the current episode's images, for its `decode`, `undecided` and `observe`.

        A step puts another one in its place, and leaves this one as it is. At an automatic reset it is the new
        episode's.
        """
        if self._state is None:
            raise gym.error.ResetNeeded("call reset() before state is asked for")
        return self._state

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Starts an episode in every environment.

        A call that is refused leaves the environment as it was.

        Args:
            seed: an integer gives image i the seed `seed + i`; a sequence gives each its own. Without one, the
                images go on to the next episode of their seeds.
            options: "context", a label or N labels, in place of the environment's own choice; "stream", what the images
                are made for: "training" (default), "tuning" or "held_out", whose random numbers differ whatever the
                seed (kept until the next seed); "reset_mask", which must be all True, since episodes run in lockstep.

        Raises:
            ValueError: if seed or options are not of this kind.
        """
        if options is not None and not isinstance(options, Mapping):
            raise ValueError(f"reset options must be a dictionary, got {options!r}")
        options = dict(options or {})
        unknown = set(options) - {"context", "stream", "reset_mask"}
        if unknown:
            raise ValueError(
                f"reset options must be among 'context', 'stream', 'reset_mask', got {sorted(map(str, unknown))}"
            )
        mask = options.get("reset_mask")
        if mask is not None:
            given = np.asarray(mask.cpu() if isinstance(mask, Tensor) else mask)
            if given.dtype != bool or not given.all():
                raise ValueError(
                    "reset_mask must be all True: the episodes of this environment run in lockstep, "
                    f"got {given.tolist()}"
                )
        rng = self._next_rng(seed, options.get("stream"))
        context = None if options.get("context") is None else self._given(options["context"])
        if isinstance(seed, int | np.integer):
            super().reset(seed=int(seed))
        self._begin(rng, context)
        self._show_if_human()
        return self._convert(self._observe()), {}

    def step(self, actions: Tensor | np.ndarray) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one decision for every image.

        Args:
            actions: (N, ...), (N, A) of a schedule.

        Raises:
            gymnasium.error.ResetNeeded: after the end of an episode, with autoreset disabled.
            ValueError: if the actions have the wrong shape or type or are not legal, or an image came out that is
                not made of finite numbers.
        """
        if self._step == self.sampler.horizon:
            if self._state is None or self.autoreset_mode is not AutoresetMode.NEXT_STEP:
                raise gym.error.ResetNeeded(
                    f"the episode is over after {self.sampler.horizon} steps: call reset()"
                    if self._state is not None
                    else "call reset() before step()"
                )
            self._begin(self._next_rng(None, None), None)
            self._show_if_human()
            return self._transition(self._observe(), done=False, info={})

        actions = self.check_actions(actions)
        command = self.actions(actions, self._step)
        with torch.no_grad():
            self._state = self.sampler.advance(self._state, command, self.rng)
        self._step += 1
        self._prev_action = actions.to(self.actions.field.dtype).clone()  # the caller may reuse its tensor
        self._show_if_human()
        observation = self._observe()
        info = self.sampler.diagnostics(self._state) | self.actions.report(command)
        done = self._step == self.sampler.horizon
        if done:
            info |= {"image": self._images(), "context": self._context, "group": self._group}
            if self.autoreset_mode is AutoresetMode.SAME_STEP:
                info = {"final_obs": observation, "final_info": self._masked(info)}
                self._begin(self._next_rng(None, None), None)  # render() goes on showing the finished image
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

    def _next_rng(self, seed: Any, stream: str | Stream | None) -> BatchRng:
        """Returns the streams of the next episode: of new seeds, or the next one of the present seeds."""
        if not (
            stream is None or isinstance(stream, Stream) or (isinstance(stream, str) and stream in STREAMS)
        ):
            raise ValueError(f"options['stream'] must be one of {', '.join(STREAMS)}, got {stream!r}")
        chosen = STREAMS[stream] if isinstance(stream, str) else stream
        if seed is not None or self._rng is None:
            return BatchRng(self._seeds(seed), stream=Stream.TRAINING if chosen is None else chosen)
        if chosen is not None:
            raise ValueError(f"options['stream'] needs a seed, got {stream!r} without one")
        return dataclasses.replace(self._rng, episode=self._rng.episode + 1)

    def _seeds(self, seed: Any) -> Tensor:
        if seed is None:
            seeds = self.np_random.integers(2**31, size=self.num_envs).tolist()
        elif np.ndim(seed) == 0:
            first = _whole_number(seed)
            seeds = range(first, first + self.num_envs)
        else:
            seeds = [_whole_number(s) for s in seed]
            if len(seeds) != self.num_envs:
                raise ValueError(f"seed must be one integer or {self.num_envs} of them, got {len(seeds)}")
        if min(seeds) < 0 or max(seeds) > MAX_SEED:
            raise ValueError(f"seeds must lie in 0..2**63-1, got {seed!r} for {self.num_envs} images")
        return torch.tensor(list(seeds), dtype=torch.int64, device=self.device)

    def _given(self, labels: Any) -> Context:
        """Returns the contexts (N,) that the caller asks for."""
        labels = labels.cpu() if isinstance(labels, Tensor) else labels
        try:
            given = np.asarray(labels).reshape(-1).tolist()
        except ValueError:  # rows of different lengths
            raise ValueError(
                f"options['context'] must hold 1 or {self.num_envs} labels, got {labels!r}"
            ) from None
        self.contexts.check(given)
        if len(given) not in (1, self.num_envs):
            raise ValueError(f"options['context'] must hold 1 or {self.num_envs} labels, got {len(given)}")
        return torch.tensor(given, dtype=torch.int64, device=self.device).expand(self.num_envs).clone()

    def _begin(self, rng: BatchRng, context: Context | None) -> None:
        """Starts an episode; contexts that were asked for are their own groups."""
        drawn = self.contexts.draw(rng) if context is None else context
        with torch.no_grad():
            state = self.sampler.start(drawn, rng)
        self._rng, self._state, self._step = rng, state, 0
        self._context, self._group = drawn, self.contexts.group(rng, drawn) if context is None else drawn
        self._prev_action = self.actions.field.zeros(self.num_envs, self.device)

    def check_actions(self, actions: Tensor | np.ndarray) -> Tensor:
        """Returns actions (N, ...) as a tensor on the device; ValueError for a wrong shape, type or device."""
        actions, field = to_tensor(actions), self.actions.field
        expected = (self.num_envs, *field.shape)
        if tuple(actions.shape) != expected:
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}")
        if actions.is_floating_point() != field.dtype.is_floating_point or actions.dtype == torch.bool:
            wanted = "floating point" if field.dtype.is_floating_point else "whole numbers"
            raise ValueError(f"actions must be {wanted}, got {actions.dtype}")
        if actions.device.type != self.device.type and self.output == "torch":
            raise ValueError(
                f"actions must be on {self.device}, got {actions.device}; move them with .to(env.device)"
            )
        return actions.detach().to(self.device)

    def check_default(self) -> None:
        """Raises a ValueError if the frozen generator's actions are drawn from what is not observed."""
        needs = self.actions.needs
        if not set(needs) <= set(self.observe):
            raise ValueError(
                f"the frozen generator's actions are drawn from {' and '.join(map(repr, needs))}, which the "
                f"environment must observe, as with observe={list(needs)}, got observe={list(self.observe)}"
            )

    def _observe(self) -> Observation:
        fields = self.sampler.observe(self._state, self.observe)
        n = self.num_envs
        fields["step"] = torch.full((n,), self._step, device=self.device)
        fields["context"] = self._context
        fields["prev_action"] = self._prev_action
        return {name: fields[name] for name in self.observe}

    def _images(self) -> Tensor:
        with torch.no_grad():
            images = self.sampler.decode(self._state)
        finite = images.flatten(1).isfinite().all(1)
        if not bool(finite.all()):
            env = int((~finite).nonzero()[0])
            raise ValueError(
                f"the image of env {env} (seed {self.rng.seeds[env].item()}) holds numbers that are not finite: its "
                "actions were too large for the generator, or the generator is damaged; call reset()"
            )
        return images

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


def unwrapped(env: VectorEnv) -> GenVectorEnv:
    """Returns the GenVectorEnv inside wrappers.

    Raises:
        ValueError: if there is another environment.
    """
    inner = env.unwrapped
    if not isinstance(inner, GenVectorEnv):
        raise ValueError(f"env must hold a GenVectorEnv, got {env!r}; make it with gym.make_vec")
    return inner


def to_numpy(value: Any) -> Any:
    """Returns a tensor, or nested dictionaries of tensors, as NumPy arrays of its own."""
    if isinstance(value, dict):
        return {name: to_numpy(entry) for name, entry in value.items()}
    return value.cpu().numpy().copy()


def to_tensor(actions: Any) -> Tensor:
    """Returns numbers as a tensor; an array may have any strides and byte order, and need not be writeable.

    Raises:
        ValueError: if they are no numbers of a type that torch has.
    """
    if isinstance(actions, Tensor) or hasattr(actions, "__cuda_array_interface__"):
        return torch.as_tensor(actions)
    try:
        array = np.asarray(actions)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError):  # the last of tensors that require gradients, in a list
        raise ValueError(
            f"actions must be an array of numbers, as of float32 or int64, got {actions!r}"
        ) from None


def _whole_number(seed: Any) -> int:
    """Returns a seed as an int: whole numbers of any library, and arrays of one."""
    value = seed.item() if isinstance(seed, Tensor | np.ndarray) else seed
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"seed must be a whole number, got {seed!r}") from None


def _space(field: Field) -> spaces.Space:
    """Returns the space of one image's field: a Discrete where it is a choice, else a Box."""
    if field.shape == () and not field.dtype.is_floating_point:
        assert field.low == 0, f"a choice must start at 0, got {field}"
        return spaces.Discrete(int(field.high) + 1)  # type: ignore[arg-type]
    dtype = np.float32 if field.dtype.is_floating_point else np.int64
    low, high = (np.broadcast_to(np.array(b, dtype), field.shape).copy() for b in (field.low, field.high))
    return spaces.Box(low, high, field.shape, dtype)
