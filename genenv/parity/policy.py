"""Reference vectors of the released policies: the network, its actions, and whole rollouts in our environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.actions import ScheduleActions
from genenv.contexts import Contexts
from genenv.envs import diffusion, flow, maskgit, var
from genenv.fields import Field
from genenv.models.policy import PolicyBackbone, released_network
from genenv.parity import maskgit as maskgit_parity
from genenv.parity import ode as ode_parity
from genenv.parity import var as var_parity
from genenv.parity.fixture import Fixture, Result, close, equal
from genenv.rng import BatchRng
from genenv.schedules import ScheduleParam, constant
from genenv.solvers import LinearPath, VPLinear
from genenv.vector_env import GenVectorEnv
from genenv.wrappers.vector import EMAActionSmoothing

NAMES = {
    "manual_gen_ratios": "mask_ratio",
    "manual_temp": "mask_temperature",
    "manual_samp_temp": "token_temperature",
    "manual_cfg": "guidance_weight",
    "cfg": "guidance_weight",
    "top_k": "top_k",
    "top_p": "top_p",
    "timesteps": "time",
}
"""Name of an action in the reference -> the schedule parameter."""


def schedule(settings: dict[str, Any]) -> tuple[ScheduleParam, ...]:
    """Returns the environment's schedule parameters under the settings of a reference policy."""
    steps, guidance = settings["gen_steps"], settings["cfg_init"]
    family = settings["model_family"]
    if family == "dit":
        return diffusion.schedule(steps + 1, guidance)
    if family == "sit":
        return flow.schedule(steps + 1, guidance)
    if family == "maskgit":
        return maskgit.schedule(steps, guidance)
    params = var.schedule(steps, 4096, guidance)
    given = {"top_k": settings["topk"], "top_p": settings["topp"]}
    return tuple(
        dataclasses.replace(param, static=constant(given[param.name], steps))
        if param.name in given
        else param
        for param in params
    )


def check_policy(fixture: Fixture) -> Iterator[Result]:
    """The network's outputs, the hand-crafted tables, the smoothed and activated actions, and a whole rollout."""
    io = fixture.tensors("io")
    policy = released_network(fixture.state_dict)
    with torch.no_grad():
        output = policy({"features": io["feat"].float(), "step": io["timestep"]})
    yield close("network", output, io["backbone_out"])
    settings = fixture.config["policy"]
    configurations = {"": settings}
    configurations |= {f"real.{name}.": real for name, real in fixture.config["real_configs"].items()}
    for prefix, configuration in configurations.items():
        recorded = {k.removeprefix(prefix): v for k, v in io.items() if k.startswith(prefix)}
        yield from _check_actions(prefix, configuration, recorded)
    yield from ROLLOUTS[settings["model_family"]](fixture, policy)


def _check_actions(prefix: str, settings: dict[str, Any], io: dict[str, Tensor]) -> Iterator[Result]:
    params = {param.name: param for param in schedule(settings)}
    ordered = [params[NAMES[key]] for key in settings["action_keys"]]
    decay = settings["action_smooth"]
    for param, key in zip(ordered, settings["action_keys"], strict=True):
        base = param.bijector.inverse(param.static)
        table = torch.cat([base[:1], (base[1:] - decay * base[:-1]) / (1 - decay)])
        # The reference's float32 inverse of the softplus loses digits where a temperature or guidance is near 0.
        near_zero = key in ("manual_temp", "manual_cfg", "cfg")
        yield close(f"{prefix}table of {key}", table, io[f"heuristic.{key}"], 1e-2 if near_zero else 1e-4)
    raw, spans = io["post_raw"], torch.tensor([param.span for param in ordered])
    env = smoothed(_Idle(ordered), decay, batch=raw.shape[1])
    env.reset()
    decoded = [env.step(row / spans)[4] for row in raw]
    for key in settings["action_keys"]:
        ours = torch.stack([info[f"schedule/{NAMES[key]}"] for info in decoded])
        yield close(f"{prefix}action {key}", ours, io[f"post.{key}"], 1e-4)


def smoothed(
    sampler: Any, decay: float, batch: int, observe: Sequence[str] = ("step",)
) -> EMAActionSmoothing:
    """Returns the environment over a sampler, with smoothed actions."""
    contexts = Contexts([str(i) for i in range(sampler.num_contexts)])
    env = GenVectorEnv(sampler, contexts, batch, observe=observe, autoreset_mode="Disabled")
    return EMAActionSmoothing(env, decay)


@dataclasses.dataclass(frozen=True)
class _IdleState:
    context: Tensor


class _Idle:
    """A sampler that generates nothing: what is left is what becomes of the actions."""

    def __init__(self, params: Sequence[ScheduleParam]):
        self.params, self.horizon = tuple(params), len(params[0].static)
        self.num_contexts, self.image_shape = 1, (1, 1, 1)
        self.fields = {"latents": Field((1, 1, 1), torch.float32, 0, 1)}

    def actions(self, mode: str, device: torch.device) -> ScheduleActions:
        return ScheduleActions(self.params, mode, device)

    def start(self, context: Tensor, rng: BatchRng) -> _IdleState:
        return _IdleState(context)

    def observe(self, state: _IdleState, names: Sequence[str]) -> dict[str, Tensor]:
        return {}

    def advance(self, state: _IdleState, params: dict[str, Tensor], rng: BatchRng) -> _IdleState:
        return state

    def decode(self, state: _IdleState) -> Tensor:
        return torch.zeros(len(state.context), *self.image_shape)

    def undecided(self, state: _IdleState) -> Tensor:
        return torch.zeros(len(state.context), 1, 1)

    def diagnostics(self, state: _IdleState) -> dict[str, Tensor]:
        return {}


class Replay:
    """A sampler whose randomness is recorded; everything else is the sampler's own.

    Args:
        sampler: of the environment.
        params: the schedule parameters in the order of the policy's outputs.
        start: context -> the first state.
        decide: (state, params) -> the next state, with the randomness recorded for it.
        observe: in place of the sampler's.
    """

    def __init__(
        self,
        sampler: Any,
        params: Sequence[ScheduleParam],
        decide: Callable[[Any, dict[str, Tensor]], Any],
        start: Callable[[Tensor], Any] | None = None,
        observe: Callable[[Any, Sequence[str]], dict[str, Tensor]] | None = None,
    ):
        self.sampler, self.params, self.horizon = sampler, tuple(params), len(params[0].static)
        self.num_contexts, self.image_shape = sampler.num_contexts, sampler.image_shape
        self.fields, self.decode = sampler.fields, sampler.decode
        self.undecided, self.diagnostics = sampler.undecided, sampler.diagnostics
        self.observe = sampler.observe if observe is None else observe
        self._decide, self._start = decide, start
        self.states: list[Any] = []

    def actions(self, mode: str, device: torch.device) -> ScheduleActions:
        """Returns how the policy's actions become parameters, in its order."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context: Tensor, rng: BatchRng) -> Any:
        """Returns the first state."""
        return self.sampler.start(context, rng) if self._start is None else self._start(context)

    def advance(self, state: Any, params: dict[str, Tensor], rng: BatchRng) -> Any:
        """Returns the next state with the recorded randomness, and keeps it."""
        self.states.append(self._decide(state, params))
        return self.states[-1]


def _drive(replay: Replay, fixture: Fixture, policy: PolicyBackbone) -> Iterator[Result]:
    """Plays an episode with the policy and compares its raw outputs and the schedule that came of them."""
    settings, rollout = fixture.config["policy"], fixture.tensors("rollout")
    contexts = rollout["contexts"]
    env = smoothed(replay, settings["action_smooth"], len(contexts), observe=("features", "step"))
    observation, _ = env.reset(options={"context": contexts})
    spans = torch.tensor([param.span for param in replay.params])
    for t in range(replay.horizon):
        with torch.no_grad():
            raw = policy(observation)
        yield close(f"raw outputs, decision {t}", raw, rollout["raw_actions"][t], 1e-3)
        observation, *_, info = env.step(raw / spans)
        for key in settings["action_keys"]:
            ours = info[f"schedule/{NAMES[key]}"]
            yield close(f"{key}, decision {t}", ours, rollout[f"action.{key}"][t], 1e-3)


def _rollout_maskgit(fixture: Fixture, policy: PolicyBackbone) -> Iterator[Result]:
    generator, rollout = fixture.sibling(fixture.config["backbone"]), fixture.tensors("rollout")
    vqgan = generator.sibling(generator.config["generator"]["decoder"])
    params = schedule(fixture.config["policy"])
    env = maskgit_parity.sampler(generator, vqgan, len(params[0].static))
    uniform, noise = rollout["token_uniform"].double(), rollout["confidence_gumbel"].double()
    replay = Replay(env, params, lambda s, p: env.decide(s, p, uniform[s.step], noise[s.step]))
    yield from _drive(replay, fixture, policy)
    for t, state in enumerate(replay.states):
        yield equal(f"sampled tokens, decision {t}", state.sampled, rollout["sampled_ids"][t])
        yield equal(f"masked tokens, decision {t}", state.tokens, rollout["masked_ids"][t])
    yield close("images", env.decode(replay.states[-1]), rollout["images"], 1e-3)


def _rollout_var(fixture: Fixture, policy: PolicyBackbone) -> Iterator[Result]:
    generator, rollout = fixture.sibling(fixture.config["backbone"]), fixture.tensors("rollout")
    env = var_parity.sampler(generator)

    def observe(state: var.VARState, names: Sequence[str]) -> dict[str, Tensor]:
        if state.prediction is None:
            return {"features": torch.zeros(())}
        return {"features": var.resize(state.prediction.hidden, var_parity.POLICY_SIDE)}

    replay = Replay(
        env,
        schedule(fixture.config["policy"]),
        lambda s, p: env.decide(s, p, rollout[f"token_uniform_{s.step}"].double()),
        observe=observe,
    )
    yield from _drive(replay, fixture, policy)
    for t, state in enumerate(replay.states):
        yield equal(f"tokens, scale {t}", state.tokens, rollout[f"idx_{t}"])
    yield close("images", env.decode(replay.states[-1]), rollout["images"], 1e-3)


def _rollout_ode(fixture: Fixture, policy: PolicyBackbone) -> Iterator[Result]:
    generator, rollout = fixture.sibling(fixture.config["backbone"]), fixture.tensors("rollout")
    is_dit = fixture.config["policy"]["model_family"] == "dit"
    params = schedule(fixture.config["policy"])
    env = ode_parity.sampler(generator, VPLinear() if is_dit else LinearPath(), params)
    replay = Replay(
        env,
        params,
        lambda s, p: env.advance(s, p, BatchRng(s.context)),  # nothing is drawn after the start
        start=lambda context: env.begin(context, rollout["z_init"]),
    )
    yield from _drive(replay, fixture, policy)
    # On DiT the feedback through the policy magnifies rounding: 1e-6 of the weights moves latents by 2e-3.
    tolerance = 2e-2 if is_dit else 1e-3
    for t, state in enumerate(replay.states[1:]):
        yield close(f"next time, evaluation {t + 1}", state.time, rollout["t_out"][t], 1e-3)
        if t % 2 == 1:
            latents = rollout["latents"][t // 2]
            yield close(f"latents, update {t // 2 + 1}", state.latents, latents, tolerance)
    images = F.avg_pool2d(env.decode(replay.states[-1]), 4)
    yield close("images, pooled", images, rollout["images_pool4"], tolerance)


ROLLOUTS = {
    "maskgit": _rollout_maskgit,
    "var": _rollout_var,
    "dit": _rollout_ode,
    "sit": _rollout_ode,
}
"""Family -> the comparison of a rollout under its policy."""
