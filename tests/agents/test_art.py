"""ART: the algorithm against what the paper says of it, and the problem whose solution is known."""

import dataclasses
import functools
import itertools
import json
import math

import gymnasium as gym
import pytest
import torch

from agents import art
from agents.art import (
    LARGEST_NOISE,
    PRESETS,
    Config,
    Trainer,
    beside_closed_form,
    deviation,
    distilled,
    grid,
    load_policy,
    load_schedule,
    martingale_residual,
    train,
)
from agents.losses import gaussian_log_prob
from agents.runs import load_checkpoint, read_config
from genenv.evaluation import first_seed
from genenv.grids import resampled
from genenv.grids import uniform as uniform_grid
from genenv.metrics.wasserstein import normal_grid_error
from genenv.rng import Stream
from genenv.rollout import generate, run_episode, schedule_actor
from genenv.vector_env import unwrapped

SMALL = Config(
    num_steps=8,
    num_envs=64,
    num_iterations=4,
    hidden_dim=16,
    distilled_trajectories=100,
    largest_grid=12,
    eval_interval=2,
    eval_images=80,
    checkpoint_interval=2,
)
PUBLISHED = dataclasses.replace(SMALL, budget="multiplier", actor_sees_state=True, critic_steps=1, trace=0.0)
CLOCK = dataclasses.replace(
    SMALL, env_id="ART/Clock-v0", backbone="digits", num_steps=3, num_envs=4, distilled_trajectories=4
)


def closed_form(steps, sigma_max=3.0):
    """Returns the surrogate's best grid (steps + 1,) of the paper's problem, dt ~ (1 + sigma^2)^(-3/4); its cost."""
    sigma = torch.linspace(sigma_max, 0, 100_001, dtype=torch.float64)
    density = (1 + sigma**2) ** -0.75
    used = torch.cat([torch.zeros(1), -torch.cumulative_trapezoid(density, sigma)]).double()
    at = torch.searchsorted(used, used[-1] * torch.linspace(0, 1, steps + 1, dtype=torch.float64))
    cost = math.sqrt(2 / math.pi) * used[-1].item() ** 2 / sigma_max
    return sigma[at.clamp(max=len(sigma) - 1)], cost


@pytest.mark.parametrize("budget", ["multiplier", "projection"])
@pytest.mark.parametrize("backbone", ["normal", "mixture-2d"])
def test_the_moment_identity_holds(budget, backbone):
    """E[d log pi / d m delta | state] = 2 |Q| dt (m* - m), with m* = (V_x F + V_psi - gamma) / (2 |Q|)."""
    config = dataclasses.replace(
        PUBLISHED, backbone=backbone, num_envs=40_000, temperature=0.05, budget=budget
    )
    trainer = Trainer(config)
    model, dt = trainer.model, trainer.sampler.time_step
    model.cost = "cost"  # whose greedy mean is known
    model.gamma.fill_(-0.6)
    along_x, along_psi = 0.3, -0.2
    price = model.gamma.item() if budget == "multiplier" else 0.0
    model.value = lambda seen: along_x * seen["point"].sum(-1) + along_psi * seen["psi"][..., 0]
    if budget == "projection":
        model.gamma.zero_()
    torch.nn.init.normal_(model.actor[-1].weight, std=0.05, generator=torch.Generator().manual_seed(1))
    episode = run_episode(trainer.env, trainer._explorer(trainer.env), list(range(config.num_envs)))
    seen, speeds = episode.observations, episode.extras["wanted"]
    slope, _ = trainer.sampler.flow(seen["point"][0], seen["psi"][0, :, 0].double(), episode.context)
    norm = episode.diagnostics["derivative_norm"][0]
    best = (along_x * slope.sum(-1) + along_psi - price) / (2 * norm)
    mean = model.mean(seen)[0].detach().requires_grad_()
    std = episode.extras["std"][0, :, None]
    gaussian_log_prob(speeds[0, :, None], mean[:, None], std).sum().backward()
    weight = (norm > config.smallest_derivative).float()  # where the variance is lambda / |Q|
    found = weight * mean.grad * trainer.increments(episode)[0]
    expected = weight * 2 * norm * dt * (best - mean)
    error = (found - expected).std() / math.sqrt(config.num_envs)
    assert abs((found - expected).mean().item()) < 4 * error
    assert abs(expected.mean().item()) > 20 * error  # which would not hold for another mean


def test_increments_are_those_of_the_definition():
    trainer = Trainer(dataclasses.replace(PUBLISHED, num_steps=3, temperature=0.3))
    trainer.model.gamma.fill_(-1.7)
    episode = run_episode(trainer.env, trainer._explorer(trainer.env), list(range(64)))
    found, seen, dt = trainer.increments(episode), episode.observations, 1.0
    with torch.no_grad():
        values = [trainer.model.value({n: v[k] for n, v in seen.items()}) + 0.3 * k * dt for k in range(3)]
    values.append(torch.full((64,), -1.7 * 3 + 0.3 * 3))  # V(T) = gamma T + lambda T
    for k in range(3):
        theta, norm = episode.extras["speed"][k], episode.diagnostics["derivative_norm"][k]
        expected = values[k + 1] - values[k] + 1.7 * theta * dt - norm * theta**2 * dt
        torch.testing.assert_close(found[k], expected, rtol=1e-4, atol=1e-4)


def test_the_multiplier_follows_the_budget():
    trainer = Trainer(dataclasses.replace(PUBLISHED, multiplier_rate=0.5))
    record = trainer.step()
    assert record["gamma"] == pytest.approx(0.5 * (record["psi"] - 3), rel=1e-4)
    assert abs(record["psi"] - 3) > 0.1  # an untrained mean is no uniform clock


def test_the_published_settings_are_those_of_the_paper():
    paper = PRESETS["paper"]
    assert (paper.temperature, paper.smallest_derivative, paper.hidden_dim) == (0.1, 1e-6, 128)
    assert (paper.learning_rate, paper.multiplier_rate, paper.num_iterations) == (((0, 1e-4),), 1e-4, 5000)
    assert (paper.num_envs, paper.num_steps, paper.trace, paper.budget) == (1, 100, 0.0, "multiplier")
    trainer = Trainer(dataclasses.replace(paper, num_steps=2))
    assert [layer.in_features for layer in trainer.model.actor[::2]] == [3, 128, 128]  # t, psi, x
    assert {type(layer) for layer in trainer.model.critic[1::2]} == {torch.nn.Softplus}


@pytest.mark.parametrize("config", [SMALL, PUBLISHED, CLOCK], ids=["projection", "multiplier", "digits"])
def test_exploration_has_the_variance_of_the_paper(config):
    trainer = Trainer(config)
    trainer.step()
    episode = run_episode(
        trainer.env, trainer._explorer(trainer.env), [7 + i for i in range(config.num_envs)]
    )
    seen, last = episode.observations, -1 if config.budget == "projection" else None
    with torch.no_grad():
        mean, std = trainer.model.mean(seen), episode.extras["std"]
        variance = trainer.model.temperature / episode.diagnostics["derivative_norm"].clamp(
            config.smallest_derivative
        )
        if config.budget == "projection":
            variance = variance.minimum((LARGEST_NOISE * mean).square())
        torch.testing.assert_close(std**2, variance.float(), rtol=1e-3, atol=0)
        noise = ((episode.extras["wanted"] - mean) / std)[:last]
    assert noise.abs().max() < 5
    if noise.numel() > 300:
        assert noise.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("backbone", ["normal", "mixture-1d"])
def test_a_projected_budget_is_met_on_every_trajectory(backbone):
    trainer = Trainer(dataclasses.replace(SMALL, backbone=backbone, temperature=0.5))
    for _ in range(2):
        record = trainer.step()
        assert record["psi"] == pytest.approx(trainer.sampler.period, rel=1e-5)
        assert record["psi_std"] < 1e-4
        assert record["gamma"] < 0


def test_trajectories_that_go_back_do_not_end_a_run():
    """As the published settings begin: one trajectory, whose clock may run backwards."""
    trainer = Trainer(dataclasses.replace(PUBLISHED, num_envs=1))
    torch.nn.init.constant_(trainer.model.actor[-1].bias, -1.0)
    before = trainer.model.speeds.clone()
    record = trainer.step()
    assert record["psi"] < 0
    assert torch.equal(trainer.model.speeds, before)


@pytest.fixture(scope="module")
def trained():
    """A trainer of the paper's problem at ten steps."""
    config = Config(
        seed=100,
        num_steps=10,
        num_iterations=90,
        learning_rate=((0, 2e-3), (40, 5e-4), (70, 1e-4)),
        distilled_trajectories=4000,
    )
    trainer = Trainer(config)
    for _ in range(config.num_iterations):
        trainer.step()
    return trainer


def test_the_papers_problem_is_learned(trained):
    levels = grid(trained.distil(), 3.0)
    for steps in (2, 5, 10, 20, 50, 100):
        found, best = (
            normal_grid_error(resampled(levels, steps)),
            normal_grid_error(closed_form(steps)[0]),
        )
        uniform = normal_grid_error(uniform_grid(steps, 3.0))
        assert abs(found - best) < 0.05 * best + 0.002
        assert found < uniform


def test_the_learned_clock_costs_what_the_closed_form_does(trained):
    kwargs = trained.config.env_kwargs | {
        "budget": "projection",
        "action_mode": "physical",
        "observe": ["step"],
    }
    env = gym.make_vec(art.MIXTURE, num_envs=2000, reward="none", **kwargs)
    best = -closed_form(10)[0].diff() * 10 / 3
    costs = [
        run_episode(env, schedule_actor(speeds[:, None]), 5, keep_observations=False)
        .diagnostics["cost"]
        .sum(0)
        .mean()
        for speeds in (trained.distil(), best, torch.ones(10, dtype=torch.float64))
    ]
    assert costs[0] < 1.02 * costs[1]
    assert costs[0] < 0.95 * costs[2]


def test_a_run_tells_how_near_it_came_to_the_closed_form(trained, tmp_path):
    best = -closed_form(10)[0].diff() * 10 / 3
    exact = beside_closed_form(trained, best, tmp_path / "clock.png")
    assert exact["cost_ratio"] == pytest.approx(1, abs=2e-3)
    assert exact["speed_error"] < 0.02
    uniform = beside_closed_form(trained, torch.ones(10, dtype=torch.float64), tmp_path / "clock.png")
    assert uniform["cost_ratio"] > 1.1
    assert uniform["speed_error"] > 0.3
    assert (tmp_path / "clock.png").stat().st_size > 500


def test_a_deviation_leaves_the_ends_out():
    speeds = torch.ones(20, dtype=torch.float64)
    others = speeds.clone()
    others[0] = others[-1] = 5
    others[7] = 1.25
    assert deviation(speeds, others) == pytest.approx(0.2)
    assert deviation(speeds[:2], others[:2]) == pytest.approx(0.8)  # too few to leave any out
    assert deviation(speeds[:3], others[:3]) == 0


def test_the_martingale_residual_is_small_on_new_trajectories(trained):
    episode = run_episode(trained.env, trained._explorer(trained.env), [10**6 + i for i in range(256)])
    untrained = Trainer(trained.config)
    untrained.model.measure(episode)
    assert martingale_residual(trained.increments(episode), episode) < 0.15
    assert martingale_residual(untrained.increments(episode), episode) > 0.3


def test_a_run_of_one_trajectory_at_a_time_is_measured_on_as_many_as_others():
    single, many = (Trainer(dataclasses.replace(SMALL, num_envs=number)) for number in (1, 64))
    speeds = torch.linspace(0.5, 1.5, SMALL.num_steps, dtype=torch.float64)
    assert single.cost_of(speeds) == pytest.approx(many.cost_of(speeds), rel=1e-6)
    torch.testing.assert_close(single.distil(), many.distil())
    torch.testing.assert_close(single.clocks(), many.clocks())


def test_the_closed_form_is_the_published_one():
    assert [round(normal_grid_error(closed_form(k)[0]), 3) for k in (2, 5, 10, 20, 50, 100)] == [
        *(0.349, 0.149, 0.077, 0.039, 0.016, 0.008)
    ]


def states(trainer):
    """Returns everything a checkpoint holds, as one list."""
    return [(name, value) for name, value in flat(trainer.state_dict()) if not name.endswith("seconds")]


def flat(state, name=""):
    if isinstance(state, dict):
        return [pair for key, value in state.items() for pair in flat(value, f"{name}.{key}")]
    if isinstance(state, list):
        return [pair for i, value in enumerate(state) for pair in flat(value, f"{name}.{i}")]
    return [(name, state)]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Returns the folder of a configuration's run from beginning to end."""

    @functools.cache
    def run(config):
        out = tmp_path_factory.mktemp("whole") / "run"
        train(config, out)
        return out

    return run


@pytest.mark.parametrize(
    ("config", "cut"),
    [(SMALL, 0), (SMALL, 3), (PUBLISHED, 1), (CLOCK, 1)],
    ids=["projection-0", "projection-3", "multiplier-1", "digits-1"],
)
def test_a_run_that_was_killed_goes_on_bit_for_bit(config, cut, whole_run, tmp_path, monkeypatch, request):
    class Killed(Exception):
        pass

    evaluated = dataclasses.replace(config, eval_interval=100)
    whole, parts = whole_run(evaluated), tmp_path / "parts"
    steps, step = itertools.count(), Trainer.step

    def dying(self):
        if next(steps) == cut:
            raise Killed
        return step(self)

    request.getfixturevalue("undrawn")  # the other run's pictures are enough
    monkeypatch.setattr(art, "beside_closed_form", lambda trainer, speeds, picture: {})
    monkeypatch.setattr(Trainer, "step", dying)
    with pytest.raises(Killed):
        train(evaluated, parts)
    monkeypatch.setattr(Trainer, "step", step)
    train(evaluated, parts, resume=True)
    ours, theirs = (Trainer(evaluated) for _ in range(2))
    for trainer, folder in ((ours, whole), (theirs, parts)):
        trainer.load_state_dict(load_checkpoint(folder / "checkpoint.pt"))
    for (name, value), (_, other) in zip(states(ours), states(theirs), strict=True):
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name
    assert (whole / "schedule.json").read_text() == (parts / "schedule.json").read_text()
    logs = [
        [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (whole, parts)
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("art") / "run"
    train(dataclasses.replace(SMALL, backbone="mixture-2d"), out)
    return out


def test_a_run_leaves_what_every_agent_does(run):
    summary = json.loads((run / "summary.json").read_text())
    assert [row["name"] for row in summary["rows"]] == ["hand-crafted", "learned"]
    config = read_config(Config, run)
    env = gym.make_vec(
        config.env_id, num_envs=config.eval_images, reward="none", **art._of_a_grid(config), contexts="cycle"
    )
    uniform = schedule_actor(torch.ones(config.num_steps, 1, dtype=torch.float64))
    first = first_seed(config.seed, config.eval_images)
    cost = generate(env, uniform, config.eval_images, first, Stream.HELD_OUT).diagnostics["secant_cost"]
    before = summary["verdict"].removeprefix("reward ").split(" -> ")[0]
    assert float(before) == pytest.approx(-cost.sum(0).mean().item(), abs=5e-4)
    assert "python -m agents.art" in summary["command"]
    assert summary[art.CLOSED_FORM]["cost_ratio"] > 0.9
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {"cost", "psi", "gamma", "martingale_residual"} <= set(records[1])
    for name in ("report.html", "samples.png", "curves.png", "schedule.png", "checkpoint.pt"):
        assert (run / name).stat().st_size > 500
    assert any((run / "tensorboard").iterdir())


def test_a_schedule_holds_every_grid(run):
    schedule = load_schedule(run)
    assert list(schedule["sigmas"]) == [str(k) for k in range(2, 13)]
    for steps, levels in schedule["sigmas"].items():
        assert len(levels) == int(steps) + 1
        assert levels[0] == pytest.approx(schedule["sigma_max"])
        assert levels[-1] == 0
        assert all(a > b for a, b in itertools.pairwise(levels))


def test_a_policy_is_an_actor_of_its_environment(run):
    actor = load_policy(run)
    env = gym.make_vec(actor.env_id, num_envs=30, reward="none", **actor.env_kwargs)
    episode = run_episode(env, actor, seed=0)
    torch.testing.assert_close(
        episode.diagnostics["psi"][-1], torch.full((30,), unwrapped(env).sampler.period)
    )
    trainer = Trainer(read_config(Config, run))
    trainer.load_state_dict(load_checkpoint(run / "checkpoint.pt"))
    with torch.no_grad():
        mean = trainer.model.mean(episode.observations)
    torch.testing.assert_close(episode.schedule["clock_speed"][:-1], mean[:-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("period", [3.0, 20.0])
@pytest.mark.parametrize("number", [1, 5])
def test_speeds_are_distilled_as_the_paper_does(period, number):
    generator = torch.Generator().manual_seed(number)
    speeds = 0.5 + torch.rand(6, number, generator=generator)
    found = distilled(speeds, period)
    expected = torch.stack([each * 6 / each.sum() for each in speeds.double().T]).mean(0)
    torch.testing.assert_close(found, expected)
    levels = grid(found, period)
    torch.testing.assert_close(levels[3].item(), period * (1 - found[:3].sum().item() / 6))
    assert (levels[0].item(), levels[-1].item()) == (pytest.approx(period), 0.0)


def test_a_distilled_grid_falls_even_where_the_clock_runs_back():
    speeds = torch.tensor([[3.0, 2.0], [-0.5, -0.7], [1.0, 1.2], [0.5, 1.5]])
    levels = grid(distilled(speeds, 2.0), 2.0)
    assert bool((levels.diff() < 0).all())


def test_trajectories_that_go_nowhere_are_left_out():
    speeds = torch.tensor([[1.5, 1e-3, -3.0], [0.5, -1e-3, 3.0]])
    torch.testing.assert_close(distilled(speeds, 3.0), speeds[:, 0].double())
    with pytest.raises(ValueError, match=r"psi\(T\) must have come to some of T = 3, got 0.015 at the most"):
        distilled(torch.tensor([[0.02], [-0.01]]), 3.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_steps": 1}, "num_steps must be finite and at least 2, got 1"),
        ({"budget": "none"}, "budget must be one of projection, multiplier, got 'none'"),
        ({"temperature": 0.0}, "temperature must be finite and above 0, got 0"),
        ({"trace": 1.5}, "trace must be in"),
        ({"trace": 1.0 + 1e-9}, r"trace must be in \[0, 1\], got 1"),
        ({"learning_rate": ((1, 1e-3),)}, "learning_rate must start at iteration 0"),
        ({"guidance_weight": -1.0}, "guidance_weight must be finite and at least 0"),
        ({"smallest_derivative": math.nan}, "smallest_derivative must be finite and above 0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_id": "AdaGen/MaskGIT-v0", "backbone": "digits"}, "unexpected keyword argument 'sigma_max'"),
        ({"backbone": "digits"}, "backbone must be 'normal', 'mixture-1d', 'pair-1d', 'mixture-2d' or"),
        ({"derivative": "exact"}, "derivative must be one of jvp, finite-difference"),
        ({"env_id": "ART/Clock-v0"}, "has no network of a diffusion or a flow"),
        ({"sigma_max": -3.0}, "0 < sigma_min < sigma_max"),
        ({"env_id": "CartPole-v1"}, "env_id must be one of .* got 'CartPole-v1'"),
    ],
)
def test_an_environment_without_a_clock_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Trainer(dataclasses.replace(SMALL, **change))


def test_a_network_that_gives_no_numbers_stops_the_run(tmp_path, monkeypatch):
    from genenv.envs.clock import ProbabilityFlow

    slope = ProbabilityFlow.slope
    monkeypatch.setattr(ProbabilityFlow, "slope", lambda *inputs: slope(*inputs) * torch.nan)
    with pytest.raises(ValueError, match=r"not finite|is nan"):
        train(SMALL, tmp_path / "run")
    assert not (tmp_path / "run" / "schedule.json").exists()


def test_an_unfinished_run_has_no_schedule(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"a run of agents\.art"):
        load_schedule(tmp_path)


def test_a_run_that_names_a_module_is_not_opened_unasked(run, tmp_path):
    config = json.loads((run / "config.json").read_text()) | {"backbone": "somewhere:mixture"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'somewhere:mixture' would run the code of a module"):
        load_policy(tmp_path)
