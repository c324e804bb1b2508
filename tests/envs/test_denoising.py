import math

import gymnasium as gym
import pytest
import torch

from genenv.actions import Deviation
from genenv.bench import network_calls
from genenv.check import check
from genenv.conditions import Labels
from genenv.envs.denoising import NETWORKS, DenoisingSampler
from genenv.envs.ode import ODESampler, evenly_spaced, pixels
from genenv.models.dit import DiT
from genenv.rng import BatchRng, Purpose, Stream
from genenv.rollout import default_actor, generator_policy, run_episode
from genenv.solvers import SOLVERS, LinearPath, VPLinear
from genenv.tiers import load_part
from genenv.transitions import TRANSITIONS
from genenv.vector_env import unwrapped

ENV_ID = "AdaScope/Denoising-v0"
SHAPE, CLASSES, DIM, STEPS = (2, 4, 4), 3, 8, 6
PREDICTED = ("mean", "std", "denoised", "features")
PATHS = {"ddim": VPLinear(), "flow-sde": LinearPath()}


def make(num_envs=4, **kwargs):
    return gym.make_vec(
        ENV_ID,
        num_envs=num_envs,
        **{"reward": "none", "autoreset_mode": "Disabled", "num_steps": 5} | kwargs,
    )


def small(rule="ddim", weight=0.0, looks_ahead=False, eta=0.8):
    """Returns a small sampler, its network and the rows of the network's calls."""
    torch.manual_seed(0)
    network, rows = DiT(4, 2, 2, DIM, 1, 2, num_classes=CLASSES).eval(), []
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)

    def counted(x, t, labels):
        rows.append(len(x))
        return network(x, t, labels)

    first, last = (0.9, 0.05) if rule == "ddim" else (0.05, 0.95)
    params = evenly_spaced(first, last, STEPS + 1, 0.0, 0.0)
    generator = ODESampler(
        counted,
        pixels,
        PATHS[rule],
        SOLVERS["euler"],
        params,
        latent_shape=SHAPE,
        num_tokens=4,
        feature_dim=DIM,
        condition=Labels(CLASSES),
        image_shape=SHAPE,
        guided_channels=2,
    )
    sampler = DenoisingSampler(
        generator, params[0].static, TRANSITIONS[rule](PATHS[rule], eta), weight, looks_ahead
    )
    return sampler, network, rows


def begin(sampler, number=3):
    rng = BatchRng(torch.arange(number))
    return sampler.start(torch.arange(number) % CLASSES, rng), rng


def deviations(number=3, steps=STEPS, seed=0, shape=SHAPE):
    return torch.randn(steps, number, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("mode", ["residual", "physical"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_it_keeps_every_promise_with_predictions_too(network, mode, weight):
    observe = [*PREDICTED, "latents", "time", "step", "context", "prev_action"]
    kwargs = {"observe": observe, "network": network, "guidance_weight": weight, "num_steps": 3}
    found = check(ENV_ID, action_mode=mode, contexts="grouped:3", **kwargs)
    assert [broken for broken in found if broken[1] is not None] == []


@pytest.mark.parametrize("weight", [0.0, 1.5])
@pytest.mark.parametrize("rule", PATHS)
def test_an_action_is_the_deviation_from_the_mean(rule, weight):
    sampler, network, _ = small(rule, weight)
    state, rng = begin(sampler)
    for step, deviation in enumerate(deviations()):
        time, following = (x.expand(3) for x in sampler.times[step : step + 2])
        labels = torch.cat([state.context, torch.full((3,), CLASSES)])
        with torch.no_grad():
            output = network(state.latents.repeat(2, 1, 1, 1), time.repeat(2).float(), labels)[0]
        conditional, unconditional = output.chunk(2)
        output = conditional + weight * (conditional - unconditional)
        data = PATHS[rule].data(state.latents, time, output)
        mean, std = sampler.transition.gaussian(state.latents, data, time, following)
        expected = mean + std.float().view(-1, 1, 1, 1) * deviation
        with torch.no_grad():
            state = sampler.advance(state, Deviation(deviation), rng)
        torch.testing.assert_close(state.latents, expected)
    assert state.step == sampler.horizon == STEPS


@pytest.mark.parametrize("network", NETWORKS)
def test_zeros_are_the_means_and_normal_numbers_the_generator(network):
    env = make(network=network)
    inner, shape = unwrapped(env), unwrapped(env).sampler.shape
    sampler = inner.sampler
    drawn = run_episode(env, default_actor(env), seed=7)
    zeros = run_episode(env, lambda observation: torch.zeros(4, *shape), seed=7)
    rng = BatchRng(torch.arange(7, 11))
    for images, strength in ((drawn.images, 1.0), (zeros.images, 0.0)):
        latents = sampler.generator.noise(rng)
        for step in range(sampler.horizon):  # the generator's own loop
            found = sampler.predicted(latents, torch.full((4,), step), drawn.context)
            noise = strength * rng.at(step).normal(*shape, purpose=Purpose.POLICY).float()
            latents = found.mean + found.std.view(-1, 1, 1, 1) * noise
        assert torch.equal(pixels(latents), images)


@pytest.mark.parametrize("network", NETWORKS)
def test_the_two_kinds_of_action_lead_to_the_same_latents(network):
    observe = ["latents", "mean", "std"]
    residual, physical = (
        make(network=network, action_mode=m, observe=observe) for m in ("residual", "physical")
    )
    drawn, given = (run_episode(env, generator_policy(env), seed=3) for env in (residual, physical))
    torch.testing.assert_close(drawn.images, given.images)
    torch.testing.assert_close(drawn.observations["latents"], given.observations["latents"])
    again = run_episode(physical, iter_actions(given.observations["latents"][1:], given.actions[-1]), seed=3)
    torch.testing.assert_close(again.images, given.images)


def iter_actions(*parts):
    steps = iter(torch.cat([part.reshape(-1, *part.shape[-4:]) for part in parts]))
    return lambda observation: next(steps)


def test_without_predictions_physical_actions_need_no_network():
    sampler, _, rows = small()
    state, rng = begin(sampler)
    for latents in deviations():
        state = sampler.advance(state, latents, rng)
        assert torch.equal(state.latents, latents)
    assert rows == []
    assert sampler.diagnostics(state)["nfe"].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("weight", "rows"), [(0.0, 3), (2.0, 6)])
@pytest.mark.parametrize("looks_ahead", [False, True])
@torch.no_grad()
def test_every_decision_costs_one_call_and_a_preview_none(weight, rows, looks_ahead):
    sampler, _, calls = small(weight=weight, looks_ahead=looks_ahead)
    state, rng = begin(sampler)
    for step, deviation in enumerate(deviations()):
        assert len(calls) == step + looks_ahead
        if looks_ahead:
            assert sampler.preview(state).shape == (3, *SHAPE)
        state = sampler.advance(state, Deviation(deviation), rng)
    sampler.decode(state)
    assert torch.equal(sampler.preview(state), sampler.decode(state))
    assert calls == [rows] * STEPS
    assert sampler.diagnostics(state)["nfe"].tolist() == [STEPS * rows // 3] * 3
    assert not any(value.any() for value in sampler.observe(state, PREDICTED).values())


@pytest.mark.parametrize("rule", PATHS)
@torch.no_grad()
def test_what_is_observed_is_the_transition(rule):
    sampler, _, _ = small(rule, 0.5, looks_ahead=True)
    state, rng = begin(sampler)
    for step, deviation in enumerate(deviations()):
        seen = sampler.observe(state, [*PREDICTED, "latents", "time"])
        found = sampler.predicted(state.latents, torch.full((3,), step), state.context)
        torch.testing.assert_close(seen["mean"], found.mean)
        torch.testing.assert_close(seen["std"][:, 0], found.std)
        torch.testing.assert_close(seen["denoised"], found.denoised)
        torch.testing.assert_close(seen["features"], found.features)
        assert torch.equal(seen["time"], torch.full((3, 1), float(sampler.times[step])))
        torch.testing.assert_close(sampler.preview(state), pixels(found.denoised))
        state = sampler.advance(state, Deviation(deviation), rng)


@torch.no_grad()
def test_log_densities_are_those_of_the_normal_distribution():
    sampler, _, _ = small()
    latents, following = deviations(number=STEPS)[:2]
    steps = torch.arange(STEPS)
    found = sampler.predicted(latents, steps, steps % CLASSES)
    normal = torch.distributions.Normal(found.mean, found.std.view(-1, 1, 1, 1))
    torch.testing.assert_close(found.log_prob(following), normal.log_prob(following).mean((1, 2, 3)))


@torch.no_grad()
def test_a_sampled_step_has_the_density_that_its_deviation_says():
    env = make(num_steps=8, network="sit")
    episode, sampler = run_episode(env, default_actor(env), seed=2), unwrapped(env).sampler
    latents = episode.observations["latents"]
    for step in range(7):
        found = sampler.predicted(latents[step], torch.full((4,), step), episode.context)
        of_deviation = -episode.actions[step].square().mean((1, 2, 3)) / 2
        expected = of_deviation - found.std.log() - 0.5 * math.log(2 * math.pi)
        torch.testing.assert_close(found.log_prob(latents[step + 1]), expected, atol=1e-5, rtol=0)


def test_gradients_reach_the_weights_and_guidance_alike():
    sampler, network, _ = small(weight=1.0)
    latents, following = deviations()[:2]
    steps = torch.tensor([0, 2, 4])
    found = sampler.predicted(latents, steps, torch.tensor([0, 1, 2]))
    found.log_prob(following).sum().backward()
    assert all(p.grad is not None for p in network.parameters() if p.requires_grad)
    assert network.y_embedder.embedding_table.weight.grad[CLASSES].any()  # that of no class


def test_another_network_takes_its_place():
    env = make()
    sampler = unwrapped(env).sampler
    before = run_episode(env, default_actor(env), seed=1).images
    network = load_part("dit", "digits")
    network.final_layer.linear.weight.data.mul_(1.2)
    sampler.use(network)
    assert not torch.equal(run_episode(env, default_actor(env), seed=1).images, before)
    sampler.use(load_part("dit", "digits"))
    assert torch.equal(run_episode(env, default_actor(env), seed=1).images, before)


@torch.no_grad()
def test_old_states_can_be_advanced_again():
    sampler, _, _ = small()
    state, rng = begin(sampler)
    states = [state]
    for deviation in deviations():
        states.append(sampler.advance(states[-1], Deviation(deviation), rng))
    for step in (4, 0, 2):
        again = sampler.advance(states[step], Deviation(deviations()[step]), rng)
        assert torch.equal(again.latents, states[step + 1].latents)


def test_the_streams_of_evaluation_give_other_images():
    env = make()
    training, held_out = (
        run_episode(env, default_actor(env), 0, stream).images
        for stream in (Stream.TRAINING, Stream.HELD_OUT)
    )
    assert not torch.equal(training, held_out)


def test_the_usual_transition_is_that_of_the_network():
    for network, (_, rule) in NETWORKS.items():
        sampler = unwrapped(make(network=network)).sampler
        assert type(sampler.transition) is TRANSITIONS[rule]
        assert sampler.transition.eta == TRANSITIONS[rule].usual
    sampler = unwrapped(make(network="sit", transition="ddim", eta=0.4)).sampler
    assert sampler.transition == TRANSITIONS["ddim"](sampler.generator.path, 0.4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"transition": "dddim"}, "transition must be one of ddim, flow-sde, got 'dddim'"),
        ({"transition": "flow-sde"}, "that of the straight path, got VPLinear; use 'ddim'"),
        ({"eta": 0}, "eta must be above 0, where no action has a density, and at most 1, got 0"),
        ({"eta": math.nan}, "eta must be above 0, .* got nan"),
        ({"eta": 1e-5}, "eta must leave every decision a standard deviation of at least 1e-05"),
        ({"eta": 1.5}, "eta must be above 0, .* at most 1, got 1.5"),
        ({"guidance_weight": -1}, "guidance_weight must be finite and at least 0, got -1"),
        ({"network": "unet"}, "network must be one of dit, sit, got 'unet'"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"action_mode": "relative"}, "action_mode must be 'residual' or 'physical', got 'relative'"),
    ],
)
def test_what_is_not_legal_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


@pytest.mark.parametrize(("observe", "predictions"), [(["step"], 5), (["mean"], 5)])
def test_the_networks_that_are_measured_are_all_of_its_networks(observe, predictions):
    env = make(3, observe=observe)
    calls = network_calls(env)
    assert len(calls) == predictions + 1
