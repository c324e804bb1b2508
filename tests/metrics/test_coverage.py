import pytest
import torch

from genenv.metrics.coverage import density_coverage


def points(n, seed, dim=3):
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def brute_force(generated, real, k):
    """Returns density and coverage, ball by ball."""
    hits, covered = 0, 0
    for centre in range(len(real)):
        to_others = sorted((real[centre] - real[j]).norm().item() for j in range(len(real)) if j != centre)
        held = sum((x - real[centre]).norm().item() <= to_others[k - 1] for x in generated)
        hits += held
        covered += held > 0
    return hits / (k * len(generated)), covered / len(real)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(15, 20), (30, 12)])
def test_density_and_coverage_are_those_of_the_definition(n, m, k):
    generated, real = 0.4 * points(n, 0) + 1.0, points(m, 1)
    density, coverage = brute_force(generated, real, k)
    assert 0 < coverage < 1
    assert density_coverage(generated, real, k) == pytest.approx((density, coverage))


def test_the_real_features_themselves_cover_everything():
    real = points(100, 0)
    density, coverage = density_coverage(real, real)
    assert coverage == 1.0
    assert density == pytest.approx(1 + 1 / 5)  # five neighbours and the centre


def test_far_features_cover_nothing():
    assert density_coverage(points(40, 0) + 100, points(50, 1)) == (0.0, 0.0)


def test_features_in_one_place_cover_little():
    real = points(100, 0)
    density, coverage = density_coverage(real[:1].repeat(40, 1), real)
    assert density == pytest.approx(coverage * 100 / 5)  # in a ball, all of them or none
    assert coverage < 0.2


@pytest.mark.parametrize("m", [1, 5])
def test_too_few_real_features_are_refused(m):
    with pytest.raises(ValueError, match=f"coverage needs more than k=5 real features, got {m}"):
        density_coverage(points(10, 0), points(m, 1))
