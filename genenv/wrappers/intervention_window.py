"""Plays an agent's actions where they count."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from genenv.scopes import Scope, parse_scope
from genenv.single_env import GenEnv
from genenv.vector_env import to_numpy, unwrapped
from genenv.wrappers.ema_action_smoothing import EMAActionSmoothing
from genenv.wrappers.vector.intervention_window import InterventionWindow as VectorInterventionWindow
from genenv.wrappers.vector.intervention_window import Judge, check_inside, make_judges


class InterventionWindow(gym.Wrapper):
    """Plays the agent's actions inside a scope, and outside of it what is played where no agent acts.

    `info["intervened"]` says after each decision whether the action was the agent's. See
    `genenv.wrappers.vector.InterventionWindow`, whose twin this is; physical schedules are rounded to float32 here, as
    every action is.

    Args:
        env: a GenEnv or wrappers around one.
        scope: which decisions are the agent's, as an object of `genenv.scopes` or its name, such as "fixed:2:5".
        semantic: judges how well previews show what was asked for, where the scope needs curves: a reward, or one by
            name.
        reward: judges what is to be maximised, likewise; "default" is the backbone's own.

    Raises:
        ValueError: as of its twin, and if the environment is another.
    """

    def __init__(self, env: gym.Env, scope: Scope | str, semantic: Judge = "clip", reward: Judge = "default"):
        super().__init__(env)
        inner = env.unwrapped
        if not isinstance(inner, GenEnv):
            raise ValueError(f"env must hold a GenEnv, got {env!r}; make it with gym.make")
        while isinstance(env, gym.Wrapper):
            check_inside(env, env.decay if isinstance(env, EMAActionSmoothing) else 0.0)
            env = env.env
        self._inner = inner
        self.scope = scope if isinstance(scope, Scope) else parse_scope(scope)
        device = unwrapped(inner.vector_env).device
        judges = make_judges(self.scope, semantic, reward, inner.spec, device)
        self._window = VectorInterventionWindow(inner.vector_env, self.scope, *judges)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        """Starts an episode; with a seed, judges that remember earlier images forget them."""
        result = self.env.reset(seed=seed, options=options)
        if seed is not None:
            self._window.forget()
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict]:
        """Takes a step with the agent's action or the default one."""
        chosen = self._window.choose(self._inner.batch(action))
        if chosen is None:
            return self.env.step(action)
        played, intervened = chosen
        result = self.env.step(to_numpy(played[0]))
        result[-1]["intervened"] = to_numpy(intervened)[0]
        return result
