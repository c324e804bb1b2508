import sys

import pytest
import torch

from genenv.data import digits
from genenv.metrics.judge import Judge

NAMES = {"fid", "kid", "precision", "recall", "density", "coverage", "accuracy"}


@pytest.fixture(scope="module")
def judge():
    return Judge()


def test_the_real_images_are_good_and_varied(judge):
    metrics = judge.measure(*digits())
    assert set(metrics) == NAMES
    assert all(type(value) is float for value in metrics.values())
    assert metrics["fid"] == pytest.approx(0.0, abs=1e-2)
    assert metrics["kid"] == pytest.approx(0.0, abs=1e-2)
    assert metrics["precision"] == metrics["recall"] == metrics["coverage"] == 1.0
    assert metrics["density"] == pytest.approx(1.2, abs=0.01)  # k = 5 neighbours and the image itself
    assert metrics["accuracy"] >= 0.97


def test_one_grey_image_over_and_over_is_bad_and_not_varied(judge):
    labels = torch.arange(200) % 10
    metrics = judge.measure(torch.full((200, 1, 8, 8), 0.5), labels)
    assert metrics["fid"] > 10
    assert metrics["kid"] > 0.1
    assert metrics["recall"] == 0.0
    assert metrics["coverage"] < 0.01
    assert metrics["accuracy"] == pytest.approx(0.1)  # it is one digit, whatever was asked for


def test_lost_diversity_is_seen_in_images_that_are_all_real(judge):
    images, labels = digits()
    of_each = torch.cat([(labels == c).nonzero()[:1, 0] for c in range(10)]).repeat(30)
    some = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[:300]
    repeated, varied = (judge.measure(images[index], labels[index]) for index in (of_each, some))
    assert repeated["fid"] > 2 * varied["fid"]
    assert repeated["coverage"] < varied["coverage"] / 2
    assert repeated["recall"] < varied["recall"]


def test_the_features_are_standardised_over_the_real_images(judge):
    torch.testing.assert_close(judge.real.mean(0), torch.zeros(64), atol=1e-3, rtol=0)
    torch.testing.assert_close(judge.real.std(0), torch.ones(64), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(judge.real.double().T), judge.covariance, atol=1e-3, rtol=1e-3)


def test_a_measurement_can_be_repeated(judge):
    images, labels = digits()
    assert judge.measure(images[:100], labels[:100]) == judge.measure(images[:100], labels[:100])


@pytest.mark.parametrize("n", [1, 64])
def test_too_few_images_are_refused(judge, n):
    message = f"the metrics need more images than the 64 feature dimensions, got {n}"
    with pytest.raises(ValueError, match=message):
        judge.measure(torch.zeros(n, 1, 8, 8), torch.zeros(n, dtype=torch.int64))


def test_without_torch_fidelity_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(
        ImportError, match=r"the metrics need torch-fidelity: pip install 'genenv\[metrics\]'"
    ):
        Judge()
