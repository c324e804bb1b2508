import itertools
import math

import pytest
import torch

from genenv import grids
from genenv.solvers import (
    EVALUATIONS,
    MIN_STEP,
    SOLVERS,
    Evaluation,
    LinearPath,
    PathDenoiser,
    VarianceExploding,
    VPLinear,
    evaluations,
    flow_acceleration,
    per_image,
    reverse_flow,
    sample,
)

PATHS = {"vp": VPLinear(), "linear": LinearPath()}
SPREAD = 0.7
"""Standard deviation of Gaussian data, for which everything is known."""


def times(path, count, first=0.2, last=0.95):
    """Returns `count` times from noise to data, after a share `first` of the way to a share `last`."""
    shares = torch.linspace(first, last, count, dtype=torch.float64)
    return path.noise_time + shares * (path.data_time - path.noise_time)


def gaussian_output(path, x, time):
    """Returns what a perfect network says of latents when the data are normal with deviation SPREAD."""
    alpha, sigma = per_image(path.alpha(time), x), per_image(path.sigma(time), x)
    scaled = x / (alpha**2 * SPREAD**2 + sigma**2)
    return path.output(data=alpha * SPREAD**2 * scaled, noise=sigma * scaled)


def gaussian_denoiser(x, sigma):
    """The mean of that data behind x = data + sigma noise."""
    return x * SPREAD**2 / (SPREAD**2 + per_image(sigma, x) ** 2)


def gaussian_scale(path, time):
    return (path.alpha(time) ** 2 * SPREAD**2 + path.sigma(time) ** 2).sqrt()


def solve(path, solver, points, x):
    """Returns x after all the points, one evaluation of the perfect network between two of them (two with Heun)."""
    memory = None
    for now, time in itertools.pairwise(points):
        start, end = now.expand(len(x)), time.expand(len(x))
        for _ in range(solver.per_decision):
            x, memory = solver.step(path, Evaluation(x, start, gaussian_output(path, x, start)), memory, end)
            start = end
    return x


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_path_goes_from_noise_to_data(path):
    time = times(path, 50, first=0.001, last=1.0)
    alpha, sigma = path.alpha(time), path.sigma(time)
    assert (alpha.diff() > 0).all()
    assert (sigma.diff() < 0).all()
    assert alpha[0] < 0.05
    assert sigma[-1] < 0.06
    torch.testing.assert_close(path.log_snr(time), (alpha / sigma).log())
    one = alpha**2 + sigma**2 if isinstance(path, VPLinear) else alpha + sigma
    torch.testing.assert_close(one, torch.ones_like(one))


def test_the_diffusion_path_integrates_its_beta():
    time = torch.linspace(0, 0.6, 100_001, dtype=torch.float64)
    beta = 0.1 + (20 - 0.1) * time
    integral = torch.trapezoid(beta, time)
    torch.testing.assert_close(VPLinear().log_alpha(time[-1]), -integral / 2)


@pytest.mark.parametrize("path", [*PATHS.values(), VarianceExploding()], ids=[*PATHS, "ve"])
def test_noise_and_data_of_an_output_make_up_the_latents(path):
    torch.manual_seed(0)
    data, noise = torch.randn(2, 5, 3, 4, 4).double()
    time = times(path, 5)
    alpha, sigma = per_image(path.alpha(time), data), per_image(path.sigma(time), data)
    latents = alpha * data + sigma * noise
    output = path.output(data, noise)
    torch.testing.assert_close(path.noise(latents, time, output), noise)
    torch.testing.assert_close(path.data(latents, time, output), data)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_noise_level_has_one_time(path):
    level = torch.tensor([0.0, 1e-6, 1e-3, 0.02, 0.7, 3.0, 80.0, 150.0], dtype=torch.float64)
    time = path.time_of(level)
    torch.testing.assert_close(path.noise_level(time), level, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.noise_level(time[1:]).log(), -path.log_snr(time[1:]))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_network_on_a_path_is_a_denoiser(path):
    torch.manual_seed(0)
    level = torch.tensor([0.01, 0.3, 2.0, 40.0], dtype=torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64) * per_image(level + SPREAD, torch.empty(4, 2, 3).double())
    denoiser = PathDenoiser(path, lambda latents, time: gaussian_output(path, latents, time))
    torch.testing.assert_close(denoiser(x, level), gaussian_denoiser(x, level))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_a_solver_has_its_order(path, name):
    solver, x = SOLVERS[name], torch.ones(1, 1, dtype=torch.float64)
    errors = []
    for count in (16, 32, 64):
        points = times(path, count + 1)
        exact = gaussian_scale(path, points[-1]) / gaussian_scale(path, points[0])
        errors.append((solve(path, solver, points, x) - exact).abs().item())
    order = math.log2(errors[1] / errors[2])
    assert order == pytest.approx(1 if name == "euler" else 2, abs=0.3)
    assert errors[0] < 0.1


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_every_image_has_its_own_times(path, name):
    torch.manual_seed(0)
    x = torch.randn(4, 1, 2, 2)
    points = torch.stack([times(path, 7, first=0.2 + 0.1 * i) for i in range(4)], dim=1)
    together, memory = x, None
    alone: list = [(x[i : i + 1], None) for i in range(4)]
    for now, time in itertools.pairwise(points):
        at = Evaluation(together, now, gaussian_output(path, together, now))
        together, memory = SOLVERS[name].step(path, at, memory, time)
        for i in range(4):
            latents, before = alone[i]
            own = Evaluation(latents, now[i : i + 1], gaussian_output(path, latents, now[i : i + 1]))
            alone[i] = SOLVERS[name].step(path, own, before, time[i : i + 1])
    torch.testing.assert_close(together, torch.cat([latents for latents, _ in alone]))


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_standing_still_changes_nothing(path, name):
    torch.manual_seed(0)
    x, time = torch.randn(3, 2, 4), torch.full((3,), path.data_time, dtype=torch.float64)
    latents, memory = x, None
    for _ in range(4):
        output = gaussian_output(path, latents, time)
        latents, memory = SOLVERS[name].step(path, Evaluation(latents, time, output), memory, time)
    torch.testing.assert_close(latents, x)


def test_dpm2s_does_not_divide_by_a_tiny_first_half():
    path, x = VPLinear(), torch.ones(1, 1, dtype=torch.float64)
    start, middle, end = (torch.tensor([t], dtype=torch.float64) for t in (0.5, 0.5 - 1e-9, 0.4))
    dpm2s = SOLVERS["dpm2s"].step
    between, memory = dpm2s(path, Evaluation(x, start, x), None, middle)
    latents, _ = dpm2s(path, Evaluation(between, middle, 1.001 * x), memory, end)
    assert (latents - x).abs().item() < 1


@pytest.mark.parametrize(
    ("path", "wanted", "current", "given"),
    [
        ("vp", 0.7, None, 0.7),
        ("vp", 0.001, None, 0.01),
        ("vp", 1.0, None, 1 - 1e-6),
        ("vp", 0.5, 0.6, 0.5),
        ("vp", 0.6, 0.6, 0.6 - MIN_STEP),
        ("vp", 0.9, 0.6, 0.6 - MIN_STEP),
        ("vp", 0.9, 0.012, 0.01),
        ("linear", 0.3, None, 0.3),
        ("linear", 0.999, None, 0.99),
        ("linear", 0.0, None, 1e-6),
        ("linear", 0.5, 0.4, 0.5),
        ("linear", 0.1, 0.4, 0.4 + MIN_STEP),
        ("linear", 0.1, 0.985, 0.99),
    ],
)
def test_times_go_forward_and_end_short_of_the_data(path, wanted, current, given):
    current = None if current is None else torch.tensor([current], dtype=torch.float64)
    limited = PATHS[path].limit(torch.tensor([wanted], dtype=torch.float64), current)
    assert limited.item() == pytest.approx(given, abs=1e-12)


def end_of(solver, steps, dtype=torch.float64):
    """Returns how far a solver's end is from the exact one, on a grid whose last step, always Euler's, is tiny."""
    levels = grids.edm(steps, 5.0, 1e-5, rho=4.0)
    x, _ = sample(gaussian_denoiser, torch.ones(1, 1, dtype=dtype), levels, solver)
    return abs(x.item() - SPREAD / math.sqrt(SPREAD**2 + 25))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2), ("dpmpp2m", 2), ("rk4", 4)])
def test_a_solver_has_its_order_on_a_grid(solver, order):
    assert math.log2(end_of(solver, 40) / end_of(solver, 80)) == pytest.approx(order, abs=0.15)
    assert end_of(solver, 20) < 0.03


@pytest.mark.parametrize(
    ("solver", "count"),
    [
        ("euler", lambda k: k),
        ("heun", lambda k: 2 * k - 1),
        ("rk4", lambda k: 4 * k - 3),
        ("dpmpp2m", lambda k: k),
    ],
)
@pytest.mark.parametrize("steps", [1, 2, 5, 18])
def test_a_solver_asks_the_denoiser_as_often_as_it_says(solver, count, steps):
    asked = []

    def denoiser(x, sigma):
        assert sigma.shape == (3,)
        assert (sigma == sigma[0]).all()
        asked.append(sigma[0].item())
        return gaussian_denoiser(x, sigma)

    levels = grids.uniform(steps, 2.0)
    _, nfe = sample(denoiser, torch.ones(3, 2, 2), levels, solver)
    assert nfe == len(asked) == count(steps) == evaluations(solver, steps)
    assert set(levels[:-1].tolist()) <= set(asked)
    assert min(asked) > 0


@pytest.mark.parametrize("solver", EVALUATIONS)
def test_a_single_step_goes_to_the_denoised_data_with_any_solver(solver):
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    found, _ = sample(gaussian_denoiser, x, [4.0, 0.0], solver)
    torch.testing.assert_close(found, gaussian_denoiser(x, torch.full((3,), 4.0)))


def test_a_step_of_heun_is_algorithm_1_of_edm():
    x, (first, second) = torch.tensor([[1.3]], dtype=torch.float64), (2.0, 0.7)

    def slope(x, sigma):
        return (x - x * SPREAD**2 / (SPREAD**2 + sigma**2)) / sigma

    middle = x + (second - first) * slope(x, first)
    corrected = x + (second - first) * (slope(x, first) + slope(middle, second)) / 2
    found, _ = sample(gaussian_denoiser, x, [first, second, 0.0], "heun")
    torch.testing.assert_close(found, corrected - second * slope(corrected, second))


@pytest.mark.parametrize("difference", [None, 0.001])
def test_the_acceleration_of_gaussian_data_is_known(difference):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    sigma = torch.tensor([0.01, 0.2, 1.0, 7.0, 60.0], dtype=torch.float64)
    flow = reverse_flow(gaussian_denoiser, x, sigma)
    torch.testing.assert_close(flow, -per_image(sigma / (SPREAD**2 + sigma**2), x) * x)
    found = flow_acceleration(gaussian_denoiser, x, sigma, flow, difference)
    expected = per_image(SPREAD**2 / (SPREAD**2 + sigma**2) ** 2, x) * x
    torch.testing.assert_close(found, expected, rtol=1e-5 if difference else 1e-10, atol=0)


def test_one_noise_level_may_stand_for_all_points():
    x, sigma = torch.ones(1, 2).expand(3, 2), torch.tensor(0.4).double().expand(3)
    expected = SPREAD**2 / (SPREAD**2 + 0.16) ** 2 * x
    flow = reverse_flow(gaussian_denoiser, x, sigma)
    torch.testing.assert_close(flow_acceleration(gaussian_denoiser, x, sigma, flow), expected)


@pytest.mark.parametrize("difference", [0.0, 1.0, -0.1, math.nan])
def test_a_difference_must_stay_above_the_noise_level_0(difference):
    x, sigma = torch.ones(1, 1), torch.ones(1).double()
    with pytest.raises(ValueError, match=f"difference must lie between 0 and 1, got {difference}"):
        flow_acceleration(gaussian_denoiser, x, sigma, x, difference)


@pytest.mark.parametrize(
    ("levels", "solver", "message"),
    [
        ([1.0, 0.0], "dpm2s", "solver of a grid must be one of euler, heun, rk4, dpmpp2m, got 'dpm2s'"),
        ([1.0], "heun", r"a list of at least 2 noise levels, got \[1.0\]"),
        ([], "heun", r"a list of at least 2 noise levels, got \[\]"),
        ([[1.0, 0.0]], "heun", "a list of at least 2 noise levels"),
        ([1.0, 0.5], "heun", r"end at 0, got \[1.0, 0.5\]"),
        ([math.nan, 0.0], "heun", "must hold finite noise levels"),
        ([math.inf, 1.0, 0.0], "heun", "must hold finite noise levels"),
        ([1.0, 2.0, 0.0], "heun", "a grid must fall, got 1 before 2 at step 0"),
        ([3.0, 2.0, 2.0, 0.0], "heun", "a grid must fall, got 2 before 2 at step 1"),
        ([3.0, -2.0, 0.0], "heun", "a grid must fall, got -2 before 0 at step 1"),
    ],
)
def test_a_grid_that_a_solver_cannot_take_is_refused(levels, solver, message):
    with pytest.raises(ValueError, match=message):
        sample(gaussian_denoiser, torch.ones(1, 1), levels, solver)


def test_no_steps_have_no_number_of_evaluations():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        evaluations("heun", 0)


@pytest.mark.parametrize("solver", EVALUATIONS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_denoiser_that_says_no_number_is_told_with_its_step(solver, bad):
    asked = []

    def denoiser(x, sigma):
        asked.append(sigma)
        data = gaussian_denoiser(x, sigma)
        if len(asked) > 2 * EVALUATIONS[solver]:  # from step 2 on
            data[-1] = bad
        return data

    with pytest.raises(ValueError, match=r"not finite in step 2, from noise level 0.5 to 0.1"):
        sample(denoiser, torch.ones(3, 2), [2.0, 1.0, 0.5, 0.1, 0.0], solver)
