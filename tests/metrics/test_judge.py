import sys

import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from genenv.checkpoints import sha256
from genenv.data import digits
from genenv.metrics import judge as module
from genenv.metrics.fid import Reference
from genenv.metrics.inception_score import inception_score
from genenv.metrics.judge import Judge, Measurement
from genenv.metrics.names import METRICS, SUMMARY
from genenv.tiers import backbone_folder

NAMES = {"fid", "kid", "precision", "recall", "density", "coverage", "inception_score", "accuracy"}


@pytest.fixture(scope="module")
def judge():
    return Judge()


@pytest.fixture(scope="module")
def real(judge):
    """What the real images are worth."""
    return judge.measure(*digits())


class Plane:
    """An extractor of two features a grey image, without real images or labels, as Inception without pictures."""

    protocol, sha256 = "plane", "0" * 64
    reference = Reference(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64), "1" * 64)
    dtype, labelled, num_classes, device = torch.float32, False, 3, torch.device("cpu")
    real = None

    def __call__(self, images):
        features = images.flatten(1)[:, :2]
        return features, torch.cat([features, -features[:, :1]], 1)


def test_the_real_images_are_good_and_varied(real):
    assert set(real) == NAMES
    assert all(type(value) is float for value in real.values())
    assert real["fid"] == pytest.approx(0.0, abs=1e-2)
    assert real["kid"] == pytest.approx(0.0, abs=1e-2)
    assert real["precision"] == real["recall"] == real["coverage"] == 1.0
    assert real["density"] == pytest.approx(1.2, abs=0.01)  # k = 5 neighbours and the image itself
    assert 7 < real["inception_score"] < 10
    assert real["accuracy"] >= 0.97


def test_one_grey_image_over_and_over_is_bad_and_not_varied(judge):
    labels = torch.arange(200) % 10
    metrics = judge.measure(torch.full((200, 1, 8, 8), 0.5), labels)
    assert metrics["fid"] > 10
    assert metrics["kid"] > 0.1
    assert metrics["recall"] == 0.0
    assert metrics["coverage"] < 0.01
    assert metrics["inception_score"] == pytest.approx(1.0, abs=1e-3)
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
    covariance = judge.extractor.reference.covariance
    torch.testing.assert_close(torch.cov(judge.real.double().T), covariance, atol=1e-3, rtol=1e-3)


def test_the_numbers_are_those_of_torch_fidelity_on_the_same_features(judge):
    images, labels = digits()
    metrics = judge.measure(images[:400], labels[:400])
    features, logits = judge.extractor(images[:400])
    assert torch.equal(features, judge.features(images[:400]))
    torch.testing.assert_close(logits, judge.extractor.classifier(images[:400]))
    generated = fid_features_to_statistics(features.double())
    reference = judge.extractor.reference
    real = {"mu": reference.mean.numpy(), "sigma": reference.covariance.numpy()}
    expected = fid_statistics_to_metric(generated, real, verbose=False)[KEY_METRIC_FID]
    assert metrics["fid"] == pytest.approx(expected, rel=1e-4)
    assert judge.fid(images[:400]) == pytest.approx(metrics["fid"], rel=1e-12)
    assert metrics["inception_score"] == pytest.approx(inception_score(logits)[0], rel=1e-9)


def test_images_that_come_in_batches_are_worth_the_same(judge):
    images, labels = digits()
    measurement = Measurement(judge.extractor, 500)
    for part, names in zip(images[:500].split(64), labels[:500].split(64), strict=True):
        measurement.update(part, names)
    assert measurement.metrics() == pytest.approx(
        judge.measure(images[:500], labels[:500]), rel=1e-4, abs=1e-6
    )


def test_a_measurement_can_be_repeated(judge):
    images, labels = digits()
    assert judge.measure(images[:100], labels[:100]) == judge.measure(images[:100], labels[:100])


def test_a_measurement_takes_no_more_room_for_more_images(judge, monkeypatch):
    monkeypatch.setattr(module, "KEPT_FEATURES", 90)
    images, labels = digits()
    measurement, sizes = Measurement(judge.extractor, 500), []

    def tensors():
        yield from (
            measurement.moments.mean,
            measurement.moments.scatter,
            measurement.seen,
            measurement.right,
        )
        yield from (measurement.score.probability, measurement.score.entropy, measurement.score.split)
        yield from (*measurement.features, *measurement.logits, *measurement.labels)

    for k in range(10):
        chosen = slice(50 * k, 50 * k + 50)
        measurement.update(images[chosen], labels[chosen])
        sizes.append(sum(t.untyped_storage().nbytes() for t in tensors()))
    assert sizes[1] == sizes[-1]
    assert torch.equal(torch.cat(measurement.features), judge.features(images[:90]))
    assert measurement.moments.count == 500
    metrics = measurement.metrics()
    assert measurement.intervals(metrics) == {}
    monkeypatch.undo()
    whole = judge.measure(images[:500], labels[:500])
    of_all = {name for name in NAMES if metrics[name] == pytest.approx(whole[name])}
    assert of_all == {"fid", "inception_score", "accuracy"} | {"precision"}  # real images are always precise


def test_intervals_hold_the_values_and_shrink_with_more_images(judge):
    images, labels = digits()
    widths = {}
    for n in (200, 800):
        measurement = Measurement(judge.extractor, n)
        measurement.update(images[:n], labels[:n])
        metrics = measurement.metrics()
        found = measurement.intervals(metrics)
        assert found.keys() == {"fid", "inception_score", "accuracy"}
        assert all(low <= metrics[name] <= high for name, (low, high) in found.items())
        widths[n] = {name: high - low for name, (low, high) in found.items()}
    assert all(widths[800][name] < widths[200][name] / 1.5 for name in ("fid", "inception_score", "accuracy"))


def test_without_real_images_and_labels_there_are_fewer_metrics():
    measurement = Measurement(Plane(), 50)
    measurement.update(torch.rand(50, 1, 2, 2), torch.zeros(50, dtype=torch.int64))
    metrics = measurement.metrics()
    assert set(metrics) == {"fid", "inception_score"}
    assert measurement.moments.mean.dtype == torch.float32
    assert measurement.intervals(metrics) == {}


def test_every_metric_has_a_name_and_a_direction(judge, real):
    assert [*real, "clip_score", "w2", "reward", "clip", "hpsv2", "nfe", "images_per_second"] == list(METRICS)
    assert set(SUMMARY) <= set(METRICS)
    worse = judge.measure(digits()[0].flip(3), digits()[1])
    for name in ("fid", "kid", "accuracy"):
        assert (worse[name] - real[name]) * METRICS[name].better < 0
    assert f"{real['accuracy']:{METRICS['accuracy'].format}}".endswith("%")


def test_the_judge_names_its_files():
    extractor = Judge().extractor
    assert extractor.protocol == "digits"
    assert extractor.sha256 == sha256(backbone_folder("digits") / "judge.safetensors")
    assert extractor.reference.sha256 == sha256(backbone_folder("digits") / "reference.safetensors")


@pytest.mark.parametrize("n", [1, 64])
def test_too_few_images_are_refused(judge, n):
    message = f"the metrics need more images than the 64 feature dimensions, got {n}"
    with pytest.raises(ValueError, match=message):
        judge.measure(torch.zeros(n, 1, 8, 8), torch.zeros(n, dtype=torch.int64))


@pytest.mark.parametrize(
    ("backbone", "known"), [("digits", "digits"), ("imagenet256-dit-xl-2", "torch-fidelity, adagen")]
)
def test_protocols_are_never_mixed(backbone, known):
    message = f"protocol must be one of {known} for backbone '{backbone}', got 'clean-fid'"
    with pytest.raises(ValueError, match=message):
        Judge(backbone, "clean-fid")


def test_without_torch_fidelity_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(
        ImportError, match=r"the metrics need torch-fidelity: pip install 'genenv\[metrics\]'"
    ):
        Judge()


def test_the_accuracy_is_told_for_each_class(judge):
    images, labels = digits()
    wrong = torch.where(labels == 3, 4, labels)  # no image is asked to be a three, and threes are no fours
    measurement = Measurement(judge.extractor, len(images))
    measurement.update(images[:900], wrong[:900])
    measurement.update(images[900:], wrong[900:])
    found = measurement.class_accuracy()
    right = judge.extractor(images)[1].argmax(1) == wrong
    assert found[3] != found[3]  # nan
    for label in (0, 4, 9):
        assert found[label] == pytest.approx(right[wrong == label].float().mean().item())
