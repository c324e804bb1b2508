import pytest
import torch
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric

from genenv.metrics.kid import kid


def features(n, seed=0):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) + seed


@pytest.mark.parametrize(("n", "m", "size"), [(300, 200, 200), (1200, 1100, 1000)])
def test_the_kernel_distance_is_that_of_torch_fidelity(n, m, size):
    generated, real = features(n), features(m, seed=1)
    expected = kid_features_to_metric(generated, real, kid_subsets=20, kid_subset_size=size, verbose=False)
    assert kid(generated, real) == pytest.approx(expected[KEY_METRIC_KID_MEAN], rel=1e-4)


def test_subsets_of_everything_give_the_unbiased_estimate():
    generated, real = features(60).double(), features(60, seed=1).double()
    kernel = lambda x, y: (x @ y.T / 8 + 1) ** 3  # noqa: E731
    own = sum((kernel(x, x).sum() - kernel(x, x).trace()) / (60 * 59) for x in (generated, real))
    assert kid(generated, real) == pytest.approx((own - 2 * kernel(generated, real).mean()).item(), rel=1e-9)
