import math

import pytest
import torch

from genenv import grids
from genenv.solvers import LinearPath, VPLinear, per_image, sample

TABLE = {
    "uniform": (0.465, 0.212, 0.110, 0.057, 0.023, 0.012),
    "edm": (0.662, 0.316, 0.174, 0.091, 0.037, 0.019),
    "edm, rho 3": (0.411, 0.192, 0.101, 0.052, 0.021, 0.011),
    "log_snr": (0.667, 0.398, 0.208, 0.110, 0.045, 0.023),
    "closed form": (0.349, 0.149, 0.077, 0.039, 0.016, 0.008),
    "cosine": (0.342, 0.146, 0.075, 0.038, 0.015, 0.008),
}
"""W2 of Euler's samples on ART's problem, N(0, 10) at sigma = 3 to N(0, 1), at these numbers of steps."""
STEPS = (2, 5, 10, 20, 50, 100)


def standard_normal(x, sigma):
    """The denoiser of standard normal data."""
    return x / (1 + per_image(sigma, x) ** 2)


@pytest.fixture(scope="module")
def measured():
    """Levels and |Q| of ART's problem along 300 trajectories."""
    levels = grids.edm(400, 3.0, 0.001, rho=2.0)[:-1]
    x = math.sqrt(10) * torch.randn(300, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return levels, *grids.accelerations(standard_normal, x, levels)


@pytest.fixture(scope="module")
def rows(measured):
    return {
        "uniform": lambda steps: grids.uniform(steps, 3.0),
        "edm": lambda steps: grids.edm(steps, 3.0, 0.0),
        "edm, rho 3": lambda steps: grids.edm(steps, 3.0, 0.0, rho=3.0),
        "log_snr": lambda steps: grids.log_snr(steps + 1, 3.0, 1e-4)[:-1],  # the table's stops above 0
        "closed form": lambda steps: grids.closed_form(steps, *measured[:2]),
        "cosine": lambda steps: grids.cosine(steps, 3.0),
    }


def error(levels):
    """Returns the exact W2 on ART's problem: both ends are normal, and Euler's rule is linear."""
    start, steps = levels[:-1], -levels.diff()
    return abs(math.sqrt(10) * (1 - steps * start / (1 + start**2)).prod().item() - 1)


@pytest.mark.parametrize("row", TABLE)
def test_the_errors_on_arts_problem_are_those_of_the_table(rows, row):
    assert [round(error(rows[row](steps)), 3) for steps in STEPS] == list(TABLE[row])


@pytest.mark.parametrize("steps", STEPS)
def test_the_cosine_grid_has_the_least_error_for_standard_normal_data(rows, steps):
    least = error(rows["cosine"](steps))
    assert least == pytest.approx(1 - math.cos(math.atan(3) / steps) ** steps)
    assert all(least < error(grid(steps)) for name, grid in rows.items() if name != "cosine")


@pytest.mark.parametrize("steps", [2, 5, 20])
def test_eulers_samples_have_that_error(rows, steps):
    levels = rows["edm"](steps)
    x, _ = sample(standard_normal, torch.full((1, 1), math.sqrt(10), dtype=torch.float64), levels, "euler")
    assert abs(x.item() - 1) == pytest.approx(error(levels))


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize("sigma_max", [3.0, 80.0])
@pytest.mark.parametrize("name", grids.GRIDS)
def test_a_grid_falls_from_sigma_max_to_0(name, sigma_max, steps):
    levels = grids.named(name, steps, sigma_max, 0.01)
    assert levels.dtype == torch.float64
    assert levels.shape == (steps + 1,)
    assert levels[0].item() == pytest.approx(sigma_max, rel=1e-12)
    assert levels[-1] == 0
    assert (levels.diff() < 0).all()


@pytest.mark.parametrize(
    ("name", "even"),
    [
        ("uniform", lambda sigma: sigma),
        ("cosine", torch.arctan),
        ("flow_time", lambda sigma: 1 / (1 + sigma)),
        ("edm", lambda sigma: sigma[:-1] ** (1 / 7)),
        ("log_snr", lambda sigma: sigma[:-1].log()),
    ],
)
def test_the_steps_of_a_grid_are_even_in_its_own_variable(name, even):
    steps = even(grids.named(name, 12, 50.0, 0.004)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(len(steps)))


def test_the_smallest_level_of_a_grid_comes_before_0():
    for grid in (grids.edm(9, 80.0, 0.002), grids.log_snr(9, 80.0, 0.002)):
        assert grid[-2].item() == pytest.approx(0.002)
    torch.testing.assert_close(grids.edm(2, 80.0, 0.002), grids.log_snr(2, 80.0, 0.002))


def test_the_closed_form_divides_the_root_of_the_mean_acceleration_evenly():
    levels = torch.linspace(2, 1e-4, 5000, dtype=torch.float64)
    acceleration = (1 + levels[:, None]) ** -4 * torch.tensor(
        [[0.5, 1.5]]
    )  # the mean's root is (1 + sigma)^-2
    found = 1 / (1 + grids.closed_form(6, levels, acceleration))
    torch.testing.assert_close(found.diff(), torch.full((6,), (1 - 1 / 3) / 6, dtype=torch.float64))


def test_the_second_norms_are_the_change_of_the_first_derivative_along_the_flow():
    levels = torch.linspace(3, 0.01, 3000, dtype=torch.float64)
    factor = torch.tensor([[0.5], [2.0]], dtype=torch.float64)  # x = factor sqrt(1 + sigma^2)
    first, second = grids.accelerations(standard_normal, factor * math.sqrt(10), levels)
    assert first.shape == second.shape == (3000, 2)
    torch.testing.assert_close(first, (1 + levels[:, None] ** 2) ** -1.5 * factor.T, rtol=0.01, atol=0.002)
    exact = 3 * levels * (1 + levels**2) ** -2.5
    inner = (levels > 0.05) & (levels < 2)
    torch.testing.assert_close(second[inner], (exact[:, None] * factor.T)[inner], rtol=0.05, atol=0.01)


@pytest.mark.parametrize("last", [2.9, 2.5, 2.3, 2.2])
def test_levels_that_fall_by_little_have_second_norms_too(last):
    levels = torch.linspace(3, last, 50, dtype=torch.float64)
    x = torch.full((1, 1), math.sqrt(10), dtype=torch.float64)
    second = grids.accelerations(standard_normal, x, levels)[1][:, 0]
    exact = 3 * levels * (1 + levels**2) ** -2.5
    assert (second / exact).log().abs().max() < math.log(2)
    assert (grids.heun_form(4, levels, *grids.accelerations(standard_normal, x, levels)).diff() < 0).all()


def test_the_second_norms_pass_over_what_trembles():
    levels = torch.linspace(3, 0.3, 1000, dtype=torch.float64)

    def trembling(x, sigma):  # its d^2 F / d sigma^2 is as large as that of the flow
        return standard_normal(x, sigma) * (1 + 2e-5 * torch.sin(200 * per_image(sigma, x).log()))

    x = torch.full((1, 1), math.sqrt(10), dtype=torch.float64)
    second = grids.accelerations(trembling, x, levels)[1][:, 0]
    exact = 3 * levels * (1 + levels**2) ** -2.5
    inner = (levels > 0.5) & (levels < 1.5)
    torch.testing.assert_close(second[inner], exact[inner], rtol=0.2, atol=0.05)


@pytest.mark.parametrize("steps", [2, 3, 7, 18])
def test_heuns_form_has_the_least_local_errors_of_all_grids_nearby(steps):
    """Its model of the error, written down from the grid alone, against that of grids with a level moved."""
    fine = torch.linspace(4, 1e-3, 4000, dtype=torch.float64)
    first, second = 1 / (1 + fine[:, None]) ** 2 + 0.2, 2 / (1 + fine[:, None]) ** 3

    def model(grid):
        total = 0.0
        for k in range(steps):
            inside = (fine <= grid[k]) & (fine > grid[k + 1])
            width = 3.999 / 3999
            if k < steps - 1:  # (the integral of the cube root)^3 / 12 of a span is what its step adds
                total += (second[inside, 0] ** (1 / 3) * width).sum() ** 3 / 12
            else:
                total += (fine[inside] * first[inside, 0] * width).sum()
        return float(total)

    grid = grids.heun_form(steps, fine, first, second)
    assert grid.shape == (steps + 1,)
    assert grid[0] == 4
    assert grid[-1] == 0
    assert (grid.diff() < 0).all()
    for k in range(1, steps):
        for side in (k - 1, k + 1):
            moved = grid.clone()
            moved[k] += 0.3 * (grid[side] - grid[k])
            assert model(grid) < model(moved)


def test_heuns_form_leaves_out_what_is_straight_above():
    fine = torch.linspace(2, 0.01, 200, dtype=torch.float64)
    second = (fine[:, None] < 1).double()
    grid = grids.heun_form(4, fine, second, second)
    assert (grid.diff() < 0).all()
    assert grid[1] < 1
    assert grids.heun_form(1, fine, second, second).tolist() == [2, 0]


def test_steps_of_the_closed_form_avoid_where_the_flow_is_straight():
    levels = torch.linspace(1, 0.01, 100, dtype=torch.float64)
    acceleration = ((levels > 0.4) & (levels < 0.6)).double()[:, None]
    grid = grids.closed_form(10, levels, acceleration)
    assert ((grid[1:-1] > 0.38) & (grid[1:-1] < 0.62)).all()


@pytest.mark.parametrize("name", grids.GRIDS)
def test_a_grid_resampled_at_its_own_steps_is_itself(name):
    grid = grids.named(name, 18, 30.0, 0.02)
    assert torch.equal(grids.resampled(grid, 18), grid)


def test_resampling_is_linear_in_log_sigma_and_in_sigma_before_0():
    grid = torch.tensor([8.0, 2.0, 0.5, 0.0])
    expected = [8, 4, 2, 1, 0.5, 0.25, 0]
    assert grids.resampled(grid, 6).tolist() == pytest.approx(expected)
    assert grids.resampled(grids.resampled(grid, 6), 3).tolist() == pytest.approx(grid.tolist())
    assert grids.resampled(grid, 1).tolist() == [8, 0]


@pytest.mark.parametrize("path", [VPLinear(), LinearPath()])
def test_times_of_a_path_stand_for_a_grid_without_those_that_stand_still(path):
    levels = torch.tensor([30.0, 4.0, 0.5, 0.1], dtype=torch.float64)
    times = path.time_of(levels)
    expected = torch.tensor([30.0, 4.0, 0.5, 0.0], dtype=torch.float64)  # the last is the data's
    torch.testing.assert_close(grids.of_times(path, times), expected)
    torch.testing.assert_close(grids.of_times(path, times[[0, 1, 1, 2, 2, 2, 3]]), expected)
    torch.testing.assert_close(grids.of_times(path, times[[0, 3]]), expected[[0, 3]])


@pytest.mark.parametrize("steps", [1, 3, 10, 25])
@pytest.mark.parametrize("model", grids.ALIGN_YOUR_STEPS)
def test_the_published_grids_come_at_any_number_of_steps(model, steps):
    grid = grids.align_your_steps(model, steps)
    assert grid.shape == (steps + 1,)
    assert grid[0] == grids.ALIGN_YOUR_STEPS[model][0]
    assert (grid.diff() < 0).all()
    if steps == 10:
        assert grid.tolist() == list(grids.ALIGN_YOUR_STEPS[model])


ONES = torch.ones(3, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: grids.uniform(0, 3.0), "steps must be at least 1, got 0"),
        (lambda: grids.cosine(-2, 3.0), "steps must be at least 1, got -2"),
        (lambda: grids.flow_time(4, 0.0), "sigma_max must be a number above 0, got 0.0"),
        (lambda: grids.uniform(4, math.nan), "sigma_max must be a number above 0, got nan"),
        (lambda: grids.edm(4, 0.5, 0.5), "sigma_min must lie above 0 and below sigma_max = 0.5, got 0.5"),
        (lambda: grids.edm(4, 3.0, -1.0), "sigma_min must lie above 0 and below sigma_max = 3, got -1.0"),
        (lambda: grids.log_snr(4, 3.0, 0.0), "sigma_min must lie above 0 and below sigma_max = 3, got 0.0"),
        (lambda: grids.log_snr(4, 3.0, 7.0), "sigma_min must lie above 0 and below sigma_max = 3, got 7.0"),
        (lambda: grids.edm(4, rho=0.0), "rho must be a number above 0, got 0.0"),
        (lambda: grids.named("karras", 4, 3.0, 0.1), "grid must be one of uniform, edm, .* got 'karras'"),
        (lambda: grids.align_your_steps("dit"), "model must be one of stable-diffusion-1.5, .* got 'dit'"),
        (lambda: grids.resampled(torch.tensor([3.0, 1, 0]), 0), "steps must be at least 1, got 0"),
        (lambda: grids.resampled(torch.tensor([3.0, 4, 0]), 2), "a grid must fall, got 3 before 4 at step 0"),
        (
            lambda: grids.accelerations(standard_normal, ONES, torch.tensor([3.0])),
            "levels must be two or more, got 1",
        ),
        (
            lambda: grids.measured_closed_form(standard_normal, ONES, 3.0, 0.1)(4, "rk4"),
            "of the solvers euler and heun, got 'rk4'",
        ),
        (
            lambda: grids.heun_form(0, torch.tensor([3.0, 2, 1]), ONES, ONES),
            "steps must be at least 1, got 0",
        ),
        (
            lambda: grids.heun_form(3, torch.tensor([3.0, 2, 1]), ONES, 0 * ONES),
            "finite, .* not 0 throughout",
        ),
        (lambda: grids.closed_form(0, torch.tensor([3.0, 2, 1]), ONES), "steps must be at least 1, got 0"),
        (lambda: grids.closed_form(4, torch.tensor([1.0, 2, 3]), ONES), "a grid must fall, got 1 before 2"),
        (lambda: grids.closed_form(4, torch.tensor([2.0, 1]), ONES), "a row for each of 2 levels, got 3"),
        (lambda: grids.closed_form(4, torch.tensor([3.0, 2, 1]), 0 * ONES), "finite, .* not 0 throughout"),
        (lambda: grids.closed_form(4, torch.tensor([3.0, 2, 1]), ONES / 0), "acceleration must be finite"),
    ],
)
def test_what_makes_no_grid_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
