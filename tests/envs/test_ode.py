from pathlib import Path

import gymnasium as gym
import pytest
import torch

from genenv import grids
from genenv.actions import ScheduleActions
from genenv.conditions import Labels
from genenv.envs import diffusion, flow, ode
from genenv.envs.ode import ODESampler, num_decisions, pixels
from genenv.models.dit import DiT
from genenv.parity.fixture import Fixture
from genenv.parity.ode import analytic_network, check_dit, check_dpm_solver, check_sit
from genenv.rng import BatchRng
from genenv.rollout import run_episode, static_actor
from genenv.solvers import MIN_STEP, SOLVERS, LinearPath, VPLinear, sample

SHARED = Path(__file__).parents[3] / "shared" / "parity"
needs_parity = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the reference vectors are not beside this checkout"
)
CLASSES, DIM, STEPS = 3, 8, 6
PATHS = {"vp": VPLinear(), "linear": LinearPath()}
SCHEDULES = {"vp": diffusion.schedule_params, "linear": flow.schedule_params}
every_path = pytest.mark.parametrize("path", PATHS)
every_solver = pytest.mark.parametrize("solver", SOLVERS)


class ToyNetwork:
    """A small DiT with random weights that remembers how many rows, and at which times, it was called."""

    def __init__(self):
        torch.manual_seed(0)
        self.network = DiT(4, 2, 2, DIM, 1, 2, num_classes=CLASSES).eval().requires_grad_(False)
        for parameter in self.network.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.3)
        self.rows, self.times = [], []

    def __call__(self, x, t, labels):
        self.rows.append(len(x))
        self.times.append(t)
        return self.network(x, t, labels)


def make(path="vp", solver="dpm2s", needs_features=False, **kwargs):
    network = ToyNetwork()
    arguments = {"latent_shape": (2, 4, 4), "num_tokens": 4, "feature_dim": DIM, "condition": Labels(CLASSES)}
    arguments |= {"image_shape": (2, 4, 4), "guided_channels": 2, "needs_features": needs_features}
    params = SCHEDULES[path](num_decisions(solver, STEPS))
    return ODESampler(network, pixels, PATHS[path], SOLVERS[solver], params, **arguments | kwargs), network


def random_params(sampler, num_images, seed=0):
    """Returns a schedule of its own for every image, [{name: (N,)}], with times that mostly go forward."""
    generator = torch.Generator().manual_seed(seed)
    shape = (sampler.horizon, num_images)
    noise = torch.rand(*shape, generator=generator, dtype=torch.float64)
    weights = 3 * torch.rand(*shape, generator=generator, dtype=torch.float64)
    times = sampler.params[0].static[:, None] + 0.15 * (noise - 0.5)
    return [
        {"time": time.clamp(0.001, 0.999), "guidance_weight": weight}
        for time, weight in zip(times, weights, strict=True)
    ]


def start(sampler, num_images, first_seed=0):
    rng = BatchRng(torch.arange(first_seed, first_seed + num_images))
    return sampler.start(torch.arange(num_images) % CLASSES, rng), rng


def rollout(sampler, schedules, **kwargs):
    """Returns all states of an episode."""
    state, rng = start(sampler, len(schedules[0]["time"]), **kwargs)
    states = [state]
    for params in schedules:
        states.append(sampler.advance(states[-1], params, rng))
    return states


@every_solver
@every_path
def test_predicting_early_for_the_features_changes_nothing(path, solver):
    finals = []
    for needs_features in (False, True):
        sampler, _ = make(path, solver, needs_features)
        finals.append(rollout(sampler, random_params(sampler, 4))[-1])
    assert torch.equal(finals[0].latents, finals[1].latents)
    assert torch.equal(finals[0].calls, finals[1].calls)


@pytest.mark.parametrize("needs_features", [False, True])
@every_solver
def test_an_episode_costs_num_steps_calls_and_none_after_the_last_decision(solver, needs_features):
    sampler, network = make("vp", solver, needs_features)
    per_decision = SOLVERS[solver].per_decision
    assert sampler.horizon == STEPS // per_decision + 1
    state, rng = start(sampler, 4)
    calls = [len(network.rows)]
    for params in random_params(sampler, 4):
        sampler.observe(state, ["latents", "features"])
        state = sampler.advance(state, params, rng)
        calls.append(len(network.rows))
    sampler.decode(state)
    assert network.rows == [8] * STEPS
    lazy = [0, *(per_decision * t for t in range(sampler.horizon))]
    eager = [calls + 1 if 0 < i < sampler.horizon else calls for i, calls in enumerate(lazy)]
    assert calls == (eager if needs_features else lazy)
    assert sampler.diagnostics(state)["nfe"].tolist() == [2 * STEPS] * 4


def test_guidance_costs_nothing_where_every_weight_is_zero():
    sampler, network = make()
    schedules = random_params(sampler, 4)
    for t, params in enumerate(schedules):
        params["guidance_weight"] *= t >= 3
    schedules[3]["guidance_weight"][1:] = 0
    state = rollout(sampler, schedules)[-1]
    assert network.rows == [4, 4, 8, 8, 8, 8]
    assert sampler.diagnostics(state)["nfe"].tolist() == [10] * 4


def test_a_guidance_weight_of_zero_is_the_conditional_network():
    finals = []
    for needs_features in (False, True):  # the second computes the unconditional half and does not use it
        sampler, _ = make(needs_features=needs_features)
        schedules = random_params(sampler, 4)
        for params in schedules:
            params["guidance_weight"] = torch.zeros(4)
        finals.append(rollout(sampler, schedules)[-1].latents)
    torch.testing.assert_close(*finals)


def test_guidance_acts_on_the_first_channels_alone():
    sampler, _ = make(guided_channels=1, needs_features=True)
    state = rollout(sampler, random_params(sampler, 4))[1]
    guided = sampler.guided(state.prediction, torch.tensor([0.0, 1.0, 2.0, 3.0]))
    conditional, unconditional = state.prediction.conditional, state.prediction.unconditional
    assert torch.equal(guided[:, 1], conditional[:, 1])
    for i in range(4):
        expected = conditional[i, 0] + i * (conditional[i, 0] - unconditional[i, 0])
        torch.testing.assert_close(guided[i, 0], expected)


@every_solver
@every_path
def test_an_image_depends_on_its_own_seed_class_and_schedule_alone(path, solver):
    sampler, _ = make(path, solver)
    schedules = random_params(sampler, 4)
    together = rollout(sampler, schedules)[-1].latents
    for i in range(4):
        rng = BatchRng(torch.tensor([i]))
        state = sampler.start(torch.tensor([i % CLASSES]), rng)
        for params in schedules:
            state = sampler.advance(state, {name: value[i : i + 1] for name, value in params.items()}, rng)
        torch.testing.assert_close(state.latents[0], together[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("needs_features", [False, True])
@every_solver
def test_an_old_state_can_be_advanced_again(solver, needs_features):
    sampler, _ = make("linear", solver, needs_features)
    schedules, others = random_params(sampler, 4), random_params(sampler, 4, seed=1)
    states = rollout(sampler, schedules)
    for t, state in enumerate(states[:-1]):
        rng = BatchRng(torch.arange(4))
        sampler.advance(state, others[t], rng)
        again = sampler.advance(state, schedules[t], rng)
        assert torch.equal(again.latents, states[t + 1].latents)
        assert torch.equal(again.time, states[t + 1].time)


@every_path
def test_the_first_decision_only_sets_the_time(path):
    sampler, network = make(path)
    state, rng = start(sampler, 4)
    params = random_params(sampler, 4)[0]
    after = sampler.advance(state, params, rng)
    other = sampler.advance(state, params | {"guidance_weight": torch.full((4,), 9.0)}, rng)
    assert torch.equal(after.latents, state.latents)
    assert torch.equal(other.latents, state.latents)
    assert torch.equal(after.time, sampler.path.limit(params["time"]))
    assert network.rows == []


@every_path
def test_times_never_turn_back_whatever_is_asked(path):
    sampler, _ = make(path)
    end = PATHS[path].data_time
    for values in ((0.3, 0.9), (0.9, 0.3), (0.001, 0.999), (0.5, 0.5)):
        asked = [
            {"time": torch.full((2,), values[t % 2]), "guidance_weight": torch.zeros(2)}
            for t in range(sampler.horizon)
        ]
        states = rollout(sampler, asked)
        distance = torch.stack([(end - state.time).abs() for state in states[1:]])
        progress = -distance.diff(dim=0)
        assert ((progress >= MIN_STEP - 1e-9) | (distance[1:] < 1e-9)).all()
        assert all(state.latents.isfinite().all() for state in states)


def test_the_network_is_told_the_time_in_its_own_units():
    sampler, network = make(time_scale=1000.0)
    states = rollout(sampler, random_params(sampler, 4))
    torch.testing.assert_close(network.times[0][:4], (1000 * states[1].time).float())
    torch.testing.assert_close(network.times[1][4:], (1000 * states[2].time).float())


def test_features_are_those_of_the_conditional_half_at_the_latents():
    sampler, network = make(needs_features=True)
    states = rollout(sampler, random_params(sampler, 4))
    for t, state in enumerate(states):
        fields = sampler.observe(state, ["latents", "features"])
        assert torch.equal(fields["latents"], state.latents)
        assert fields["features"].shape == (4, 4, DIM)
        if 0 < t < sampler.horizon:
            _, features = network.network(state.latents, state.time.float(), state.context)
            torch.testing.assert_close(fields["features"], features, rtol=1e-4, atol=1e-4)
        else:
            assert not fields["features"].any()
    assert sampler.observe(states[0], ["latents"]).keys() == {"latents"}


@every_path
def test_every_state_has_an_image_and_a_noise_level(path):
    sampler, _ = make(path)
    states = rollout(sampler, random_params(sampler, 4))
    levels = []
    for state in states:
        images, level = sampler.decode(state), sampler.undecided(state)
        assert images.shape == (4, 2, 4, 4)
        assert images.min() >= 0
        assert images.max() <= 1
        assert level.shape == (4, 4, 4)
        assert (level.amax((1, 2)) == level.amin((1, 2))).all()
        levels.append(level[:, 0, 0])
    assert (levels[0] > 0.999).all()
    assert (torch.stack(levels).diff(dim=0) <= 0).all()
    torch.testing.assert_close(sampler.diagnostics(states[-1])["time"], states[-1].time.float())


def test_the_start_is_standard_normal_noise_of_each_seed():
    sampler, _ = make()
    state, _ = start(sampler, 500)
    assert state.latents.dtype == torch.float32
    assert state.latents.mean().abs() < 0.05
    assert (state.latents.std() - 1).abs() < 0.05
    other, _ = start(sampler, 1, first_seed=7)
    assert torch.equal(other.latents[0], state.latents[7])


@pytest.mark.parametrize(
    ("paradigm", "first", "last", "weight"), [(diffusion, 0.9, 0.01, 1.0), (flow, 0.01, 0.99, 1.5)]
)
def test_an_action_of_zero_is_the_hand_crafted_schedule(paradigm, first, last, weight):
    decoder = ScheduleActions(paradigm.schedule_params(17))
    values = [decoder(torch.zeros(1, 2), t) for t in range(17)]
    expected = torch.linspace(first, last, 17, dtype=torch.float64)
    assert [value["time"].item() for value in values] == expected.tolist()
    assert {value["guidance_weight"].item() for value in values} == {weight}


@pytest.mark.parametrize("paradigm", [diffusion, flow])
@pytest.mark.parametrize(
    ("solver", "num_steps", "horizon"),
    [("dpm2s", 8, 9), ("dpm2s", None, 17), ("euler", 7, 8), ("heun", 8, 5), ("dpmpp2m", 7, 8)],
)
def test_a_sampler_is_made_from_its_part(monkeypatch, paradigm, solver, num_steps, horizon):
    asked = []

    def load(part, backbone):
        asked.append((part, backbone))
        return ToyNetwork().network

    monkeypatch.setattr(ode, "load_part", load)
    arguments = {"device": "cpu", "dtype": torch.bfloat16, "needs_features": True, "compile": False}
    sampler = paradigm.make_sampler("digits", num_steps, **arguments, solver=solver)
    assert asked == [(paradigm.PARTS[0], "digits")]
    assert (sampler.horizon, sampler.num_contexts, sampler.image_shape) == (horizon, CLASSES, (2, 4, 4))
    state = rollout(sampler, random_params(sampler, 2))[-1]
    assert state.latents.dtype == torch.float32
    assert state.latents.isfinite().all()


def test_a_released_backbone_has_an_autoencoder_and_three_guided_channels(monkeypatch):
    class Autoencoder(torch.nn.Module):
        downsampling, image_channels = 2, 3

        def decode(self, latents):
            return latents.repeat_interleave(2, 2).repeat_interleave(2, 3)[:, [0, 0, 0]]

    parts = {"dit": ToyNetwork().network, "vae": Autoencoder()}
    monkeypatch.setattr(ode, "load_part", lambda part, backbone: parts[part])
    arguments = {"device": "cpu", "dtype": torch.float32, "needs_features": False, "compile": False}
    sampler = diffusion.make_sampler("imagenet256-dit-xl-2", 4, **arguments)
    assert sampler.image_shape == (3, 8, 8)
    assert sampler.guided_channels == 3
    assert sampler.decode(start(sampler, 2)[0]).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("solver", "num_steps", "message"),
    [
        ("rk4", 8, "solver must be one of dpm2s, euler, heun, dpmpp2m, got 'rk4'"),
        ("dpm2s", 7, "solver 'dpm2s' takes an even num_steps, got 7; use 8"),
        ("heun", 3, "solver 'heun' takes an even num_steps, got 3; use 4"),
        ("euler", 0, "num_steps must be at least 1, got 0"),
        ("dpm2s", -2, "num_steps must be at least 1, got -2"),
    ],
)
def test_steps_that_a_solver_cannot_take_are_refused(solver, num_steps, message):
    with pytest.raises(ValueError, match=message):
        num_decisions(solver, num_steps)


@pytest.mark.parametrize(("paradigm", "most"), [(diffusion, 89), (flow, 98)])
def test_more_steps_than_the_times_have_room_for_are_refused(monkeypatch, paradigm, most):
    monkeypatch.setattr(ode, "load_part", lambda part, backbone: ToyNetwork().network)
    arguments = {"device": "cpu", "dtype": torch.float32, "needs_features": False, "compile": False}
    assert paradigm.make_sampler("digits", most, **arguments, solver="euler").horizon == most + 1
    with pytest.raises(ValueError, match=f"num_steps must be at most {most}"):
        paradigm.make_sampler("digits", most + 1, **arguments, solver="euler")


IDS = {"AdaGen/DiT-v0": (58.8, 0.0447), "AdaGen/SiT-v0": (99.0, 0.0101)}
"""Ids -> the noise levels where their hand-crafted schedule begins and ends."""


def on_grid(env_id, **kwargs):
    """Returns four environments of the digits on a grid, and their finished images and evaluations."""
    env = gym.make_vec(env_id, num_envs=4, reward="none", autoreset_mode="Disabled", **kwargs)
    episode = run_episode(env, static_actor(env), seed=3)
    return env.unwrapped, episode


@pytest.mark.parametrize("solver", ["euler", "dpmpp2m"])
@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("grid", ["edm", "flow_time", [30.0, 5.0, 1.2, 0.7, 0.2, 0.05, 0.0]])
def test_the_hand_crafted_images_of_a_grid_are_those_of_its_samples(env_id, solver, grid):
    env, episode = on_grid(env_id, solver=solver, grid=grid, num_steps=6, guidance_weight=0.4)
    sampler, rng = env.sampler, BatchRng(torch.arange(3, 7))
    first, last = IDS[env_id]
    levels = torch.tensor(grid).double() if isinstance(grid, list) else grids.named(grid, 6, first, last)
    time = sampler.path.time_of(levels[:1])
    noise = sampler.noise(rng) / sampler.path.alpha(time).float()
    context = env.contexts.draw(rng)
    x, nfe = sample(sampler.denoiser(context, torch.full((4,), 0.4)), noise, levels, solver)
    assert (nfe, env.state.calls.tolist()) == (6, [12] * 4)  # guidance counted
    torch.testing.assert_close(episode.images, pixels(x), atol=2e-3, rtol=0)  # the ends are told to 3 digits


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize("name", grids.GRIDS)
def test_a_named_grid_lies_between_the_ends_of_the_usual_times_and_ends_at_the_data(env_id, name):
    env = gym.make_vec(env_id, num_envs=1, reward="none", solver="euler", num_steps=5, grid=name).unwrapped
    path, static = env.sampler.path, env.sampler.params[0].static
    levels = path.noise_level(static)
    torch.testing.assert_close(levels[:-1], grids.named(name, 5, *IDS[env_id])[:-1], rtol=5e-3, atol=0)
    assert levels[-1].item() == pytest.approx(ode.DATA_LEVEL)
    assert path.limit(static[-1:], static[-2:-1]) == static[-1]


def test_sits_own_times_are_the_grid_of_flow_time():
    usual, other = (
        gym.make_vec("AdaGen/SiT-v0", num_envs=1, reward="none", **kwargs).unwrapped.sampler.params[0].static
        for kwargs in ({}, {"grid": "flow_time"})
    )
    torch.testing.assert_close(other, usual, atol=0.011, rtol=0)  # it goes on to the data


@pytest.mark.parametrize(("solver", "calls"), [("euler", 8), ("dpmpp2m", 8), ("dpm2s", 8), ("heun", 7)])
def test_the_last_step_of_a_grid_is_eulers(solver, calls):
    env, episode = on_grid("AdaGen/SiT-v0", solver=solver, grid="cosine", num_steps=8, guidance_weight=1.5)
    assert env.state.calls.tolist() == [2 * calls] * 4
    assert episode.images.isfinite().all()
    last = episode.diagnostics["time"][-2].double()
    sampler = env.sampler
    assert (sampler.path.noise_level(last) < 0.7).all()
    assert sampler.rule(sampler.horizon - 1) is SOLVERS["euler"]
    assert sampler.rule(sampler.horizon - 2) is SOLVERS[solver]


def test_a_grid_may_have_steps_that_are_shorter_than_the_usual_least():
    levels = [99.5, 99.0, 98.0, 1e-3, 1e-4, 0.0]
    env, episode = on_grid("AdaGen/SiT-v0", solver="euler", num_steps=5, grid=levels)
    expected = env.sampler.path.time_of(torch.tensor(levels).double()).float()
    torch.testing.assert_close(episode.diagnostics["time"], expected[:, None].expand(-1, 4))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"grid": "karras"}, "grid must be one of uniform, edm, .* or a list of noise levels, got 'karras'"),
        ({"grid": [3.0, 1.0, 0.0]}, "grid must have 9 noise levels for 8 steps, got 3"),
        ({"grid": [3.0, 0.0], "solver": "heun"}, "grid must have 5 noise levels for 4 steps, got 2"),
        ({"grid": [3.0, 4.0, 0.0], "num_steps": 2}, "a grid must fall, got 3 before 4 at step 0"),
        ({"grid": [3.0, 1.0, 0.5], "num_steps": 2}, "end at 0"),
        ({"grid": [152.5, 1.0, 0.0], "num_steps": 2}, "below the noise level 152.2 of pure noise, got 152.5"),
        ({"grid": 3}, "grid must be a name, such as 'edm', a list of noise levels, or None .* got 3"),
        ({"grid": [1, "0"]}, "grid must be a name, such as 'edm', a list of noise levels, or None"),
    ],
)
def test_a_grid_that_an_environment_cannot_follow_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        gym.make_vec("AdaGen/DiT-v0", num_envs=1, reward="none", **kwargs)


def analytic(path, solver, times):
    """Returns the final latents of an episode with an analytic network, its first ones, and its network."""
    network, shape = analytic_network(1000), (4, 3, 3)
    arguments = {"latent_shape": shape, "num_tokens": 1, "feature_dim": 1, "condition": Labels(1000)}
    params = SCHEDULES[path](len(times))
    sampler = ODESampler(
        network,
        lambda x: x,
        PATHS[path],
        SOLVERS[solver],
        params,
        **arguments,
        image_shape=shape,
        guided_channels=4,
    )
    labels, weights = torch.tensor([100, 900]), torch.zeros(2)
    rng = BatchRng(torch.arange(2))
    first = state = sampler.start(labels, rng)
    for time in times:
        state = sampler.advance(state, {"time": torch.full((2,), time), "guidance_weight": weights}, rng)
    return state.latents, first.latents, lambda x, t: network(x, torch.full((2,), t), labels)[0]


def diffusers_steps(scheduler, points, x, output, timestep=lambda t: round(1000 * t) - 1):
    """Returns the latents after a diffusers scheduler took a step from each point, all but the last."""
    for index, time in points:
        step = scheduler.timesteps[index] if timestep is None else timestep(time)
        x = scheduler.step(output(x, time), step, x, return_dict=False)[0]
    return x


def towards_noise(output):
    """Returns the velocity as diffusers has it, of the opposite sign."""
    return lambda x, t: -output(x, t)


def same_path(scheduler):
    """Gives a scheduler of discrete times the diffusion path, k meaning the time (k + 1) / 1000."""
    time = torch.arange(1, 1001, dtype=torch.float64) / 1000
    scheduler.alphas_cumprod = (2 * VPLinear().log_alpha(time)).exp()
    return scheduler


def test_euler_is_ddim_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = same_path(diffusers.DDIMScheduler(clip_sample=False))
    scheduler.set_timesteps(10)
    times = [0.901 - 0.1 * k for k in range(9)]
    ours, noise, output = analytic("vp", "euler", times)
    theirs = diffusers_steps(scheduler, list(enumerate(times[:-1])), noise, output)
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of theirs
@pytest.mark.parametrize(
    ("solver", "scheduler"),
    [("dpm2s", "DPMSolverSinglestepScheduler"), ("dpmpp2m", "DPMSolverMultistepScheduler")],
)
def test_the_second_order_solvers_are_those_of_diffusers(solver, scheduler):
    diffusers = pytest.importorskip("diffusers")
    scheduler = same_path(getattr(diffusers, scheduler)(lower_order_final=True))
    times = [0.9, 0.8, 0.72, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    timesteps = [round(1000 * time) - 1 for time in times]
    scheduler.set_timesteps(timesteps=[*timesteps, 50, 40, 30])
    ours, noise, output = analytic("vp", solver, times)
    theirs = diffusers_steps(scheduler, list(enumerate(times[:-1])), noise, output)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_euler_on_the_straight_path_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    times = [0.01, 0.1, 0.3, 0.45, 0.7, 0.9, 0.99]
    scheduler.set_timesteps(sigmas=[1 - time for time in times])
    ours, noise, output = analytic("linear", "euler", times)
    theirs = diffusers_steps(
        scheduler, list(enumerate(times[:-1])), noise, towards_noise(output), timestep=None
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_heun_on_the_straight_path_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(9)
    times = (1 - torch.linspace(1, 0.001, 9, dtype=torch.float64)[:8]).clamp(min=1e-6).tolist()
    ours, noise, output = analytic("linear", "heun", times)
    points = [time for k in range(7) for time in (times[k], times[k + 1])]
    theirs = diffusers_steps(scheduler, list(enumerate(points)), noise, towards_noise(output), timestep=None)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@needs_parity
@pytest.mark.parametrize(
    ("name", "check"), [("dit", check_dit), ("sit", check_sit), ("dpm_solver", check_dpm_solver)]
)
def test_the_reference_is_reproduced(name, check):
    if name != "dpm_solver":
        pytest.importorskip("diffusers")
    assert [result for result in check(Fixture(SHARED / name)) if not result.ok] == []
