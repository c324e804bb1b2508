import dataclasses
import math

import gymnasium as gym
import pytest
import torch

from genenv import tiers
from genenv.envs.clock import ClockSampler, Noise, ProbabilityFlow
from genenv.envs.ode import pixels
from genenv.rng import BatchRng
from genenv.rollout import run_episode, static_actor
from genenv.solvers import per_image
from genenv.tiers import Tier
from genenv.vector_env import unwrapped
from genenv.wrappers.vector import RunningCost

N = 4
CLOCK, MIXTURE = "ART/Clock-v0", "ART/GaussianMixture-v0"
FLOWS = [
    (CLOCK, {"network": "sit"}),
    (CLOCK, {"network": "dit"}),
    (CLOCK, {"network": "sit", "guidance_weight": 2.0}),
    (MIXTURE, {"backbone": "mixture-1d"}),
    (MIXTURE, {"backbone": "mixture-2d", "sigma_max": 5}),
]


def make(env_id=MIXTURE, num_envs=N, **kwargs):
    return gym.make_vec(env_id, num_envs=num_envs, autoreset_mode="Disabled", **kwargs)


def speeds(env, table, **kwargs):
    """Returns the episode of speeds (K, N) in physical units."""
    steps = iter(table)
    return run_episode(env, lambda _: next(steps)[:, None], seed=3, **kwargs)


def relative(found, expected):
    return ((found - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)).max().item()


@pytest.mark.parametrize("level", [1.0, 0.3, 0.03])
@pytest.mark.parametrize(("env_id", "kwargs"), FLOWS)
def test_the_derivative_along_the_flow_is_that_of_central_differences(env_id, kwargs, level, monkeypatch):
    monkeypatch.setattr(
        torch.Tensor, "float", torch.Tensor.double
    )  # differences need more digits than float32 has
    sampler = unwrapped(make(env_id, **kwargs)).sampler
    flow, context = sampler.flow, torch.arange(N) % sampler.num_contexts
    if env_id == CLOCK:
        flow.denoiser.sampler.network.double()
    sigma = torch.full((N,), level * flow.sigma_max, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(N, *sampler.fields[sampler.name].shape, generator=generator, dtype=torch.float64)
    x, h = x * (sigma[0] ** 2 + 0.5).sqrt(), 1e-4 * sigma
    flow.sigma_max *= 2  # so that there is a level before the first
    psi = flow.sigma_max - sigma
    with torch.no_grad():
        slope, derivative = flow(x, psi, context)
        ahead = flow.slope(x + per_image(h, x) * slope, psi + h, context)
        behind = flow.slope(x - per_image(h, x) * slope, psi - h, context)
    assert relative(derivative, (ahead - behind) / (2 * per_image(h, x))) < 1e-3


@pytest.mark.parametrize("place", [-1.0, 0.0, 2.0, 2.999, 3.5])
def test_outside_the_clock_the_flow_is_that_of_its_ends(place):
    flow = unwrapped(make(backbone="normal")).sampler.flow
    x, psi = torch.tensor([[0.7]], dtype=torch.float64), torch.tensor([place], dtype=torch.float64)
    slope, derivative = flow(x, psi, torch.zeros(1, dtype=torch.int64))
    sigma = min(max(3 - place, 0.003), 3)
    assert slope.item() == pytest.approx(-sigma * 0.7 / (1 + sigma**2))
    inside = 0.7 / (1 + sigma**2) ** 2
    still = -sigma / (1 + sigma**2) * slope.item()  # psi does not change the flow there
    expected = inside if 0 <= place <= 2.997 else still
    assert derivative.item() == pytest.approx(expected)


# DiT reads its time from waves so short that its derivative turns within a hundredth of the noise level
@pytest.mark.parametrize(("env_id", "kwargs"), [flow for flow in FLOWS if flow[1].get("network") != "dit"])
def test_finite_differences_are_near_the_derivative(env_id, kwargs):
    costs = []
    for derivative in ("jvp", "finite-difference"):
        env = make(env_id, derivative=derivative, num_steps=5, **kwargs)
        costs.append(run_episode(env, static_actor(env), seed=7).diagnostics["derivative_norm"])
    torch.testing.assert_close(costs[1], costs[0], rtol=0.1, atol=1e-3)
    assert not torch.equal(*costs)


@pytest.mark.parametrize(("env_id", "kwargs"), FLOWS)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_projected_budget_is_used_up_and_never_overspent(env_id, kwargs, steps):
    env = make(env_id, num_steps=steps, action_mode="physical", **kwargs)
    period = unwrapped(env).sampler.period
    generator = torch.Generator().manual_seed(steps)
    table = (steps + 1) * torch.rand(steps, N, generator=generator) ** 4  # some far too fast, some too slow
    psi = speeds(env, table).diagnostics["psi"]
    assert bool((psi <= period).all())
    assert torch.equal(psi[-1], torch.full((N,), period))
    assert bool((psi.diff(dim=0) >= 0).all())
    wanted = (table[:-1].cumsum(0) * period / steps).clamp(max=period)
    torch.testing.assert_close(psi[:-1], wanted.float(), rtol=1e-5, atol=1e-5)


def test_the_multiplier_leaves_the_speed_free():
    env = make(backbone="normal", num_steps=4, budget="multiplier", action_mode="physical")
    table = torch.tensor(
        [[2.0, -1.0, 0.0, 1.0], [1.5, 0.5, 0.0, 1.0], [-0.5, 0.0, 0.0, 1.0], [3.0, 1.0, 0.0, 1.0]]
    )
    psi = speeds(env, table).diagnostics["psi"]
    torch.testing.assert_close(psi, table.cumsum(0) * 3 / 4)


@pytest.mark.parametrize("budget", ["projection", "multiplier"])
@pytest.mark.parametrize("backbone", ["normal", "mixture-2d"])
def test_a_decision_is_an_euler_step_and_costs_what_the_paper_says(backbone, budget):
    steps, generator = 5, torch.Generator().manual_seed(2)
    env = make(backbone=backbone, num_steps=steps, budget=budget, action_mode="physical")
    sampler = unwrapped(env).sampler
    table = 0.2 + 0.7 * torch.rand(steps, N, generator=generator)
    episode = speeds(env, table)
    dt = sampler.period / steps
    x, psi, context = episode.observations["point"][0].double(), torch.zeros(N, dtype=torch.float64), None
    for k in range(steps):
        slope, derivative = sampler.flow(x, psi, context)
        theta = table[k].double()
        if budget == "projection" and k == steps - 1:
            theta = (sampler.period - psi) / dt
        diagnostics = {name: value[k].double() for name, value in episode.diagnostics.items()}
        torch.testing.assert_close(
            diagnostics["derivative_norm"], derivative.norm(dim=1), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(diagnostics["slope_norm"], slope.norm(dim=1), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(diagnostics["latent_rms"], x.square().mean(1).sqrt(), rtol=1e-4, atol=1e-6)
        cost = derivative.norm(dim=1) * theta**2 * dt
        torch.testing.assert_close(diagnostics["cost"], cost, rtol=1e-4, atol=1e-6)
        x, psi = x + (theta * dt)[:, None] * slope, psi + theta * dt
        torch.testing.assert_close(diagnostics["psi"], psi, rtol=1e-5, atol=1e-5)
        found = torch.stack([diagnostics[f"x{i}"] for i in range(x.shape[1])], dim=1)
        torch.testing.assert_close(found, x, rtol=1e-4, atol=1e-5)


def test_the_features_are_those_of_the_latents_at_hand():
    env = make(CLOCK, num_steps=3, observe=["features", "psi", "clock", "latents"])
    seen, _ = env.reset(seed=0)
    for t in range(3):
        log_q, slope, size = seen["features"][:, 0].unbind(1)
        torch.testing.assert_close(seen["clock"], torch.full((N, 1), t * 20 / 3))
        torch.testing.assert_close(size, seen["latents"].flatten(1).square().mean(1).sqrt())
        seen, _, _, _, info = env.step(torch.zeros(N, 1))
        torch.testing.assert_close(log_q.exp(), info["derivative_norm"])
        torch.testing.assert_close(slope, info["slope_norm"])
        torch.testing.assert_close(seen["psi"][:, 0], info["psi"])
    assert not seen["features"].any()


def test_the_usual_observation_says_where_the_clock_is():
    assert set(make(CLOCK).reset(seed=0)[0]) == {"latents", "psi", "clock", "step", "context"}
    assert set(make().reset(seed=0)[0]) == {"point", "psi", "clock", "step", "context"}


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_sampling_takes_a_network_call_a_decision_and_two_with_guidance(weight):
    env = make(CLOCK, num_steps=3, guidance_weight=weight)
    rows = []
    sampler = unwrapped(env).sampler
    network = sampler.flow.denoiser.sampler.network
    sampler.flow.denoiser.sampler.network = lambda *inputs: rows.append(len(inputs[0])) or network(*inputs)
    nfe = run_episode(env, static_actor(env), seed=0).diagnostics["nfe"]
    calls = 2 if weight else 1
    assert nfe[:, 0].tolist() == [calls * k for k in (1, 2, 3)]
    assert rows == [calls * N] * 7  # the flow and its derivative, and the flow after the last decision


def test_guidance_moves_the_images():
    images = []
    for weight in (0.0, None, 2.0):
        env = make(CLOCK, num_steps=4, guidance_weight=weight)
        images.append(run_episode(env, static_actor(env), seed=0).images)
    assert torch.equal(images[0], images[1])
    assert (images[2] - images[0]).abs().max() > 1e-2


@pytest.mark.parametrize("network", ["sit", "dit"])
def test_many_uniform_steps_make_the_classes_digits(network):
    from genenv.rewards.classifier import make as classifier

    kwargs = {"network": network, "guidance_weight": 1.0, "contexts": "cycle"}
    # the derivative moves no image
    env = make(CLOCK, num_envs=20, num_steps=40, derivative="finite-difference", **kwargs)
    episode = run_episode(env, static_actor(env), seed=0)
    assert classifier("digits", "cpu")(episode.images, episode.context).exp().mean() > 0.5


def test_the_running_cost_is_a_reward():
    env = make(num_steps=6)
    plain = run_episode(env, static_actor(env), seed=5)
    paid = run_episode(RunningCost(env, "cost", 0.5), static_actor(env), seed=5)
    torch.testing.assert_close(paid.rewards, plain.rewards - 0.5 * plain.diagnostics["cost"])
    assert bool((plain.diagnostics["cost"] > 0).all())


def test_sb3_learns_a_cheaper_clock():
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO

    from genenv.integrations.sb3 import GenVecEnv

    def cost(actor):
        env = make(num_envs=512, num_steps=5)
        return run_episode(env, actor, seed=10_000).diagnostics["cost"].sum(0).mean().item()

    env = gym.make_vec(MIXTURE, num_envs=64, num_steps=5)
    model = PPO(
        "MultiInputPolicy", GenVecEnv(RunningCost(env, "cost")), n_steps=20, batch_size=320, seed=0, gamma=1.0,
        learning_rate=2e-3,
    )  # fmt: skip
    model.learn(64 * 20 * 12)
    learned = cost(
        lambda seen: torch.as_tensor(
            model.predict({k: v.numpy() for k, v in seen.items()}, deterministic=True)[0]
        )
    )
    assert learned < 0.95 * cost(lambda seen: torch.zeros(512, 1))


@pytest.mark.parametrize(
    ("told", "expected"),
    [({}, (20.0, 0.02)), ({"sigmas": (7.0, 0.5)}, (7.0, 0.5)), ({"sigmas": Tier.sigmas}, (80.0, 0.002))],
)
def test_a_clock_has_the_noise_levels_of_its_tier(told, expected, monkeypatch):
    known = tiers.tiers()
    monkeypatch.setattr(tiers, "_TIERS", known | {"digits": dataclasses.replace(known["digits"], **told)})
    flow = unwrapped(make(CLOCK)).sampler.flow
    assert (flow.sigma_max, flow.sigma_min) == expected


@dataclasses.dataclass(frozen=True)
class Broken:
    """A denoiser that gives no numbers."""

    def __call__(self, x, sigma, context):
        return x * torch.nan


def test_a_network_that_gives_no_numbers_is_told():
    env = make(CLOCK, num_steps=2)
    unwrapped(env).sampler.flow.denoiser = Broken()
    env.reset(seed=3)
    env.step(torch.zeros(N, 1))
    with pytest.raises(ValueError, match=r"image of env 0 \(seed 3\) holds numbers that are not finite"):
        env.step(torch.zeros(N, 1))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"budget": "none"}, "budget must be one of projection, multiplier, got 'none'"),
        ({"derivative": "exact"}, "derivative must be one of jvp, finite-difference, got 'exact'"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"sigma_max": 2, "sigma_min": 2}, "0 < sigma_min < sigma_max, got sigma_min=2, sigma_max=2"),
        ({"sigma_max": 0.01}, "0 < sigma_min < sigma_max, got sigma_min=0.02, sigma_max=0.01"),
        ({"sigma_min": 0}, "0 < sigma_min < sigma_max, got sigma_min=0, sigma_max=20"),
        ({"sigma_max": math.inf}, "0 < sigma_min < sigma_max"),
        ({"guidance_weight": -1}, "guidance_weight must be finite and at least 0, got -1"),
        ({"guidance_weight": math.nan}, "guidance_weight must be finite and at least 0, got nan"),
        ({"network": "unet"}, "network must be one of sit, dit, got 'unet'; 'digits' has sit and dit"),
        ({"backbone": "imagenet256-maskgit-l"}, "has no network of a diffusion or a flow"),
        ({"sigma_max": "20"}, "sigma_max must be a number"),
    ],
)
def test_a_clock_that_cannot_be_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(CLOCK, **kwargs)


def test_the_flow_of_a_known_denoiser_is_solved():
    std, sigma_max = (
        0.5,
        4.0,
    )  # D(x) = std^2 x / (std^2 + sigma^2): the flow shrinks x as the spread of its noise

    def denoiser(x, sigma, context):
        return x * per_image(std**2 / (std**2 + sigma**2), x)

    steps = 400
    sampler = ClockSampler(
        ProbabilityFlow(denoiser, sigma_max, 1e-3),
        Noise((2, 3, 3), sigma_max),
        pixels,
        steps,
        "projection",
        name="latents",
        shape=(2, 3, 3),
        num_contexts=1,
        image_shape=(2, 3, 3),
    )
    rng = BatchRng(torch.arange(N))
    state = first = sampler.start(torch.zeros(N, dtype=torch.int64), rng)
    for _ in range(steps):
        state = sampler.advance(state, {"clock_speed": torch.ones(N, dtype=torch.float64)}, rng)
    expected = first.latents * std / math.hypot(std, sigma_max)
    torch.testing.assert_close(state.latents, expected, rtol=0.02, atol=1e-3)
    torch.testing.assert_close(first.latents.std().item(), sigma_max, rtol=0.2, atol=0)
