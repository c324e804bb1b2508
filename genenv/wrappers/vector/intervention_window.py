"""Plays an agent's actions where they count, batched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorActionWrapper, VectorEnv, VectorWrapper
from torch import Tensor

from genenv.protocols import Previews, Reward
from genenv.rewards import make_reward
from genenv.rewards.mixture import Mixture, as_mixture
from genenv.rng import BatchRng
from genenv.scopes import Scope, parse_scope
from genenv.vector_env import to_numpy
from genenv.wrappers.vector.base import GenVectorWrapper
from genenv.wrappers.vector.ema_action_smoothing import EMAActionSmoothing

Judge: TypeAlias = str | Mapping[str, float] | Reward
"""What `genenv.rewards.make_reward` takes, or a reward."""


class InterventionWindow(GenVectorWrapper):
    """Plays the agent's actions inside a scope, and outside of it what is played where no agent acts.

    That is the hand-crafted schedule, or what the frozen generator draws, tokens by the observed "logits" for instance.
    `info["intervened"]` (N,) says after each decision whose action was the agent's.

    An adaptive scope has a preview of every image judged before each decision: `preview` of a sampler that looks ahead,
    which asks its network once more, else what it has made so far. Judges that compare images make windows depend on
    the batch.

    Args:
        env: a GenVectorEnv or wrappers around one, with torch or NumPy output, in any autoreset mode.
        scope: which decisions are the agent's, as an object of `genenv.scopes` or its name, such as "fixed:2:5".
        semantic: judges how well previews show what was asked for, where the scope needs curves: a reward, or one by
            name.
        reward: judges what is to be maximised, likewise; "default" is the backbone's own.

    Raises:
        ValueError: if the scope does not fit the horizon, actions are smoothed inside, what the generator draws from is
            not observed, or there is no such judge.
    """

    def __init__(
        self, env: VectorEnv, scope: Scope | str, semantic: Judge = "clip", reward: Judge = "default"
    ):
        super().__init__(env)
        self.scope = scope if isinstance(scope, Scope) else parse_scope(scope)
        self.scope.check(self._inner.sampler.horizon)
        while isinstance(env, VectorWrapper):
            check_inside(env, env.decay if isinstance(env, EMAActionSmoothing) else 0.0)
            env = env.env
        self._inner.check_default()
        self.judges = make_judges(self.scope, semantic, reward, self._inner.spec, self._inner.device)
        for judge in self.judges:
            judge.check_number(self.num_envs)
        self._points: list[Tensor] = []  # (2, N) each, of both curves
        self._of: BatchRng | None = None  # the episode that they are of

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts the episodes; with a seed, judges that remember earlier batches forget them."""
        result = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self.forget()
        return result

    def forget(self) -> None:
        """Lets judges that remember earlier batches forget them."""
        for judge in self.judges:
            judge.reset()

    def step(self, actions: Tensor | np.ndarray) -> tuple[Any, Any, Any, Any, dict]:
        """Takes a step with the agent's actions (N, ...) or the default ones; the one that resets plays none."""
        actions = self._inner.check_actions(actions)
        chosen = self.choose(actions)
        if chosen is None:
            return self.env.step(actions)
        played, intervened = chosen
        observation, paid, terminated, truncated, info = self.env.step(played)
        entries: dict[str, Any] = {"intervened": intervened, "_intervened": torch.ones_like(intervened)}
        info.get("final_info", info).update(to_numpy(entries) if self._inner.output == "numpy" else entries)
        return observation, paid, terminated, truncated, info

    def choose(self, actions: Tensor) -> tuple[Tensor, Tensor] | None:
        """Returns what is played at the decision at hand (N, ...), and whose action is the agent's (N,) bool.

        None at the end of an episode, where nothing is to be decided.

        Args:
            actions: (N, ...), the agent's.
        """
        inner, step = self._inner, self._inner.current_step
        if step == inner.sampler.horizon:
            return None
        semantic, reward = self._curves(step) if self.scope.needs_curves else (None, None)
        inside = self.scope.inside(step, inner.sampler.horizon, inner.rng, semantic, reward)
        observed = inner.sampler.observe(inner.state, inner.actions.needs)
        default = inner.actions.default(observed, inner.rng.at(step))
        return torch.where(inside.view(-1, *[1] * (actions.ndim - 1)), actions, default), inside

    @torch.no_grad()
    def _curves(self, step: int) -> Tensor:
        """Returns both curves up to a decision, (2, step + 1, N)."""
        if self._of is not self._inner.rng:
            self._points, self._of = [], self._inner.rng
        if len(self._points) < step:
            raise gym.error.ResetNeeded("the episode began without its InterventionWindow: call reset()")
        sampler, state = self._inner.sampler, self._inner.state
        images = sampler.preview(state) if isinstance(sampler, Previews) else sampler.decode(state)
        judged = torch.stack([judge(images, self._inner.context) for judge in self.judges])  # (2, N)
        # without the points of earlier episodes, and the one of a step that was refused
        self._points = [*self._points[:step], judged]
        return torch.stack(self._points, dim=1)


def make_judges(
    scope: Scope, semantic: Judge, reward: Judge, spec: EnvSpec | None, device: torch.device
) -> list[Mixture]:
    """Returns the judges of both curves, none for a scope that needs none.

    Args:
        scope: the scope.
        semantic: of the first curve.
        reward: of the second.
        spec: of the environment, which knows the backbone; None where it was not made by gymnasium.
        device: where the judges run.

    Raises:
        ValueError: if there is no such judge.
    """
    if not scope.needs_curves:
        return []
    made = []
    for name, judge in (("semantic", semantic), ("reward", reward)):
        if not isinstance(judge, str | Mapping):
            made.append(as_mixture(judge))
            continue
        if spec is None:
            raise ValueError(
                f"{name} must be a reward (images, context) -> (N,) where gymnasium did not make the environment, "
                f"got {judge!r}"
            )
        backbone = spec.kwargs["backbone"]
        mixture = make_reward(judge, backbone, str(device), prompts=spec.kwargs.get("prompts"))
        if mixture is None:
            raise ValueError(
                f"{name} must be a reward, which {judge!r} is not for the backbone {backbone!r}; an adaptive scope "
                "judges previews"
            )
        made.append(mixture)
    return made


def check_inside(wrapper: gym.Wrapper | VectorWrapper, decay: float) -> None:
    """Raises a ValueError for a wrapper inside that changes actions: default ones would not be what they are.

    Args:
        wrapper: the wrapper.
        decay: of an average that it takes of actions, 0 for none.
    """
    if decay or isinstance(wrapper, gym.ActionWrapper | VectorActionWrapper):
        name = type(wrapper).__name__
        what = (
            f"smoothing must be 0 inside an InterventionWindow, got {decay}"
            if decay
            else (
                f"{name} must stand outside of an InterventionWindow, since it changes the default actions too"
            )
        )
        raise ValueError(
            f"{what}; change the agent's actions outside, as {name}(InterventionWindow(env, ...), ...)"
        )
