"""Reference vectors of the released policies: the network, its actions, and whole rollouts in our environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from genenv.schedules import ScheduleParam
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


VOCAB_SIZE = 4096
"""Tokens of VAR in the reference's range of top-k, whatever the transformer has."""

UNUSED = tuple(
    f"{configuration}.{name}"
    for configuration in ("policy", "real_configs.*")
    for name in ("dit_model", "sit_model", "model_depth", "test_bsz", "*_path")
)
"""Settings that name the generator or say how it is evaluated."""


def schedule(settings: Mapping[str, Any]) -> tuple[ScheduleParam, ...]:
    """Returns the environment's schedule parameters under the settings of a reference policy, in the policy's order."""
    family, steps, guidance = (settings[name] for name in ("model_family", "gen_steps", "cfg_init"))
    if family == "dit":
        params = diffusion.schedule_params(steps + 1, guidance)
    elif family == "sit":
        params = flow.schedule_params(steps + 1, guidance)
    elif family == "maskgit":
        temperatures = settings["temp_init"], settings["manual_samp_temp_init"]
        params = maskgit.schedule_params(steps, guidance, *temperatures)
    else:
        filters = min(settings["topk"], VOCAB_SIZE), settings["topp"]
        params = var.schedule_params(steps, VOCAB_SIZE, guidance, *filters, settings["manual_samp_temp_init"])
    named = {param.name: param for param in params}
    return tuple(named[NAMES[key]] for key in settings["action_keys"])


def _slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().double().requires_grad_()
    return torch.autograd.grad(function(at).sum(), at)[0]


def _rounding(param: ScheduleParam) -> Tensor:
    """Returns how far the reference's schedule (T,) may be off before its activation: it is computed in float32.

    Where a ratio, a temperature or a guidance weight is near an end of its range, the inverse of the activation is so
    steep that this is far more than the rounding of the value.
    """
    value = 4 * torch.finfo(torch.float32).eps * param.static.max().clamp(min=1)
    return value * _slope(param.bijector.inverse, param.inside)


def _action_rounding(param: ScheduleParam, ours: Tensor, t: int) -> Tensor:
    """Returns how far the reference's actions may be off our own (N,) at decision t.

    Where the hand-crafted schedule stands at an end of the range, our action of 0 does too, and theirs is inside of it.
    """
    moved = (param.inside - param.static)[t].abs()
    return _rounding(param)[t] / _slope(param.bijector.inverse, ours) + moved


def check_policy(fixture: Fixture) -> Iterator[Result]:
    """The network's outputs, the hand-crafted tables, the smoothed and activated actions, and a whole rollout."""
    io = fixture.tensors("io")
    policy = released_network(fixture.state_dict)
    settings = fixture.config["policy"]
    yield from fixture.expect(
        {
            "constructor.in_channels": io["feat"].shape[2],
            "constructor.out_channels": len(settings["action_keys"]),
            "constructor.hidden_size": len(fixture.state_dict["dw_conv.weight"]),
            "rows": len(io["post_raw"]),
        }
    )
    fixture.ignore(*UNUSED)
    with torch.no_grad():
        output = policy({"features": io["feat"].float(), "step": io["timestep"]})
    yield close("network", output, io["backbone_out"])
    configurations = {"": settings}
    configurations |= {f"real.{name}.": real for name, real in fixture.config["real_configs"].items()}
    for prefix, configuration in configurations.items():
        yield from check_actions(prefix, configuration, io.under(prefix))
    yield from ROLLOUTS[settings["model_family"]](fixture, policy)


def check_actions(prefix: str, settings: Mapping[str, Any], io: Mapping[str, Tensor]) -> Iterator[Result]:
    """The hand-crafted tables of a configuration, and what becomes of given outputs of a network."""
    params, decay = schedule(settings), settings["action_smooth"]
    for param, key in zip(params, settings["action_keys"], strict=True):
        base, rounding = param.bijector.inverse(param.inside), _rounding(param)
        table = torch.cat([base[:1], (base[1:] - decay * base[:-1]) / (1 - decay)])
        rounding = torch.cat([rounding[:1], (rounding[1:] + decay * rounding[:-1]) / (1 - decay)])
        yield close(f"{prefix}table of {key}", table, io[f"heuristic.{key}"], rounding=rounding)
    raw, spans = io["post_raw"], torch.tensor([param.span for param in params])
    env = smoothed(_Idle(params), decay, batch=raw.shape[1])
    env.reset()
    decoded = [env.step(row / spans)[4] for row in raw]
    for param, key in zip(params, settings["action_keys"], strict=True):
        ours = torch.stack([info[f"schedule/{param.name}"] for info in decoded])
        rounding = torch.stack([_action_rounding(param, row, t) for t, row in enumerate(ours)])
        yield close(f"{prefix}action {key}", ours, io[f"post.{key}"], rounding=rounding)


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
        for param, key in zip(replay.params, settings["action_keys"], strict=True):
            ours = info[f"schedule/{param.name}"]
            rounding = _action_rounding(param, ours, t)
            yield close(f"{key}, decision {t}", ours, rollout[f"action.{key}"][t], 1e-3, rounding)


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
        yield close(f"time, evaluation {t + 1}", replay.states[t].time, rollout["t_in"][t], 1e-3)
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
