import numpy as np
import pytest
import torch

from genenv.metrics.frechet import frechet_distance, moments
from genenv.metrics.intervals import bootstrap, interval, student


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # t_{0.975, 2} = 4.3027, times 1 / sqrt(3)
    assert student([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)


def test_a_single_value_has_no_interval():
    assert interval([0.25]) == "0.250"


def mean_interval(samples, strata=None):
    strata = torch.zeros(len(samples), dtype=torch.int64) if strata is None else strata
    values = {"mean": samples.mean().item()}
    return bootstrap(lambda i: {"mean": samples[i].mean().item()}, values, strata)["mean"]


def test_what_a_plan_decides_does_not_vary():
    strata = torch.tensor([2, 0, 1, 0]).repeat(50)
    assert mean_interval(strata.double(), strata) == (0.75, 0.75)
    noise = torch.randn(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = mean_interval(strata + noise, strata)
    assert high - low == pytest.approx(2 * 1.96 / 200**0.5, rel=0.3)
    low, high = mean_interval(strata + noise)
    assert high - low == pytest.approx(2 * 1.96 * (1 + 0.6875) ** 0.5 / 200**0.5, rel=0.3)


def test_a_bootstrap_interval_of_a_mean_is_the_usual_one_and_shrinks():
    widths = {}
    for n in (100, 1600):
        samples = torch.randn(n, generator=torch.Generator().manual_seed(n), dtype=torch.float64)
        low, high = mean_interval(samples)
        assert (low + high) / 2 == pytest.approx(samples.mean().item(), abs=0.5 / n**0.5)
        assert high - low == pytest.approx(2 * 1.96 / n**0.5, rel=0.3)
        assert mean_interval(samples) == (low, high)
        widths[n] = high - low
    assert widths[1600] < widths[100] / 3


def test_a_bootstrap_interval_covers_the_fid_of_as_many_images():
    dim, n, trials = 4, 200, 40
    strata = torch.zeros(n, dtype=torch.int64)
    origin, unit = torch.zeros(dim, dtype=torch.float64), torch.eye(dim, dtype=torch.float64)

    def fid(features):
        return frechet_distance(*moments(features), origin, unit)

    draw = lambda seed: 0.3 + torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))  # noqa: E731
    expected = np.mean([fid(draw(1000 + seed)) for seed in range(300)])
    covered = 0
    for seed in range(trials):
        features = draw(seed)
        found = bootstrap(
            lambda i, f=features: {"fid": fid(f[i])}, {"fid": fid(features)}, strata, resamples=60
        )
        low, high = found["fid"]
        covered += low <= expected <= high
    assert covered / trials >= 0.85  # 95 % less what 40 trials and 60 resamples allow
