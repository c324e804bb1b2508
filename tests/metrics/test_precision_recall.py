import pytest
import torch
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from genenv.metrics.precision_recall import precision_recall


def points(n, seed):
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def share_inside(chosen, centres, k):
    """Returns the share of points that lie in a ball around a centre, centre by centre."""
    inside = torch.zeros(len(chosen), dtype=torch.bool)
    for i in range(len(centres)):
        distances = (centres - centres[i]).norm(dim=1)
        radius = distances[torch.arange(len(centres)) != i].sort().values[k - 1]
        inside |= (chosen - centres[i]).norm(dim=1) <= radius
    return inside.double().mean().item()


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_of_the_definition_and_of_torch_fidelity(k):
    generated, real = 0.5 * points(24, 0) + 0.8, points(30, 1)
    precision, recall = precision_recall(generated, real, k)
    assert precision == pytest.approx(share_inside(generated, real, k))
    assert recall == pytest.approx(share_inside(real, generated, k))
    assert 0 < recall < precision
    expected = prc_features_to_metric(generated, real, prc_neighborhood=k, verbose=False)
    assert (precision, recall) == (expected[KEY_METRIC_PRECISION], expected[KEY_METRIC_RECALL])
