import itertools
import math

import pytest
import torch

from genenv.metrics.wasserstein import normal_grid_error, wasserstein


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.5), (2.0, 1.0), (-1.0, 0.3)])
def test_it_is_that_of_gaussians_on_a_line(mean, std):
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 200_000, 1, generator=generator)
    assert wasserstein(one, mean + std * other) == pytest.approx(math.hypot(mean, std - 1), rel=0.02)


def test_points_in_the_plane_go_to_their_nearest_places():
    generator = torch.Generator().manual_seed(1)
    points = torch.rand(50, 2, generator=generator)
    order = torch.randperm(50, generator=generator)
    shift = torch.tensor([3.0, -4.0])
    assert wasserstein(points, points[order]) == pytest.approx(0, abs=1e-6)
    assert wasserstein(points, points[order] + shift) == pytest.approx(5)


def test_a_line_in_the_plane_is_a_line():
    generator = torch.Generator().manual_seed(2)
    one, other = torch.randn(2, 40, 1, generator=generator)
    flat = [torch.cat([x, torch.zeros_like(x)], dim=1) for x in (one, other)]
    assert wasserstein(*flat) == pytest.approx(wasserstein(one, other))


@pytest.mark.parametrize("shapes", [((4, 1), (5, 1)), ((4, 2), (4, 1)), ((4,), (4,))])
def test_samples_that_cannot_be_compared_are_refused(shapes):
    with pytest.raises(ValueError, match=r"both samples must be \(N, d\)"):
        wasserstein(*map(torch.zeros, shapes))


@pytest.mark.parametrize(
    ("steps", "expected"), [(2, 0.465), (5, 0.212), (10, 0.110), (20, 0.057), (50, 0.023), (100, 0.012)]
)
def test_the_uniform_grid_has_its_known_error(steps, expected):
    levels = [3 * (1 - k / steps) for k in range(steps)] + [0.0]
    assert normal_grid_error(levels) == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("sigmas", [[3.0, 1.2, 0.4, 0.0], [5.0, 0.0], [0.5, 0.2, 0.0]])
def test_the_error_of_a_grid_is_that_of_its_points(sigmas):
    x = (
        math.hypot(1, sigmas[0])
        * torch.randn(400_000, 1, generator=torch.Generator().manual_seed(3)).double()
    )
    exact = x / math.hypot(1, sigmas[0])
    for level, below in itertools.pairwise(sigmas):
        x = x + (level - below) * -level * x / (1 + level**2)
    found = wasserstein(x, exact * (1 if x[0] * exact[0] > 0 else -1))
    assert normal_grid_error(sigmas) == pytest.approx(found, rel=0.02, abs=2e-3)
