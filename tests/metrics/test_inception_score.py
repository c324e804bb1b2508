import pytest
import torch
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from genenv.metrics.inception_score import InceptionScore, inception_score


def logits(n, classes=7):
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(n))


def streamed(values, batch):
    score = InceptionScore(*values.shape)
    for part in values.split(batch):
        score.update(part)
    return score


@pytest.mark.parametrize("n", [10, 103, 500])
def test_the_score_is_that_of_torch_fidelity_at_once_and_batch_by_batch(n):
    expected = isc_features_to_metric(logits(n))
    mean, spread = inception_score(logits(n))
    assert mean == pytest.approx(expected[KEY_METRIC_ISC_MEAN])
    assert spread == pytest.approx(expected[KEY_METRIC_ISC_STD])
    for batch in (1, 32, n):
        assert streamed(logits(n), batch).mean() == pytest.approx(mean, rel=1e-12)


def test_certain_and_balanced_classes_score_their_number():
    certain = 1e4 * torch.eye(4).repeat(100, 1)
    mean = streamed(certain, 64).mean()
    assert 3.9 < mean <= 4.0
    assert mean == pytest.approx(inception_score(certain.clamp(max=500))[0])


def test_the_same_logits_over_and_over_score_one():
    assert streamed(logits(1).repeat(50, 1), 7).mean() == pytest.approx(1.0)


def test_fewer_images_than_splits_are_refused():
    with pytest.raises(ValueError, match="the Inception Score needs at least 10 images, got 9"):
        InceptionScore(9, 3)
