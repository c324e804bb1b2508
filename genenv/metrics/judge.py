"""The held-out judge: features of generated images, by a network that no reward uses, against those of real ones."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

import torch
from torch import Tensor

from genenv.metrics.coverage import density_coverage
from genenv.metrics.fid import fid
from genenv.metrics.frechet import Moments, frechet_distance, moments
from genenv.metrics.inception_score import InceptionScore, inception_score
from genenv.metrics.intervals import Interval, bootstrap
from genenv.metrics.kid import kid
from genenv.metrics.precision_recall import precision_recall
from genenv.protocols import Context
from genenv.tiers import Extractor, tier_of

KEPT_FEATURES = 10_000
"""Images whose features are kept: the first ones. KID, precision, recall, density and coverage are theirs."""
BOOTSTRAP_DIM = 256
"""Most feature dimensions whose FID is computed for hundreds of resamples."""


class Judge:
    """Measures generated images on the features of a network that no reward uses.

    FID, density and coverage (k = 5) are genenv's; KID, precision and recall (Kynkaanniemi et al. 2019, k = 3) and the
    Inception Score torch-fidelity's. Without real images (an ADM reference of moments alone) there is no KID,
    precision, recall, density and coverage; without a classifier of the labels (Inception) no accuracy.

    Args:
        backbone: whose images are measured.
        protocol: one of the `judges` of its tier, by default the first: "digits" for the digits; "torch-fidelity" or
            "adagen" for ImageNet (see `genenv.metrics.inception.PROTOCOLS`).
        device: where the network runs, if it minds.

    Raises:
        ImportError: without torch-fidelity.
        ValueError: if there is no such backbone or protocol, or its tier has no judge.
        CheckpointError: if a file is missing, damaged or another one.
    """

    def __init__(
        self, backbone: str = "digits", protocol: str | None = None, device: torch.device | str = "cpu"
    ):
        try:
            import torch_fidelity  # noqa: F401
        except ImportError:
            raise ImportError("the metrics need torch-fidelity: pip install 'genenv[metrics]'") from None
        judges = tier_of(backbone).need("judges")
        protocol = next(iter(judges)) if protocol is None else protocol
        if protocol not in judges:
            raise ValueError(
                f"protocol must be one of {', '.join(judges)} for backbone {backbone!r}, got {protocol!r}"
            )
        self.extractor: Extractor = judges[protocol](backbone, torch.device(device))

    @property
    def real(self) -> Tensor | None:
        """The features (M, D) of the real images, None where there are only their moments."""
        return self.extractor.real

    def features(self, images: Tensor) -> Tensor:
        """Returns features (N, D) of images (N, C, H, W) in [0, 1]."""
        return self.extractor(images)[0]

    def halves(self, splits: int = 10) -> list[float]:
        """Returns the FID of one random half of the real images from the other, of some splits; [] without images."""
        distances = []
        for seed in range(splits if self.real is not None else 0):
            assert self.real is not None
            order = torch.randperm(len(self.real), generator=torch.Generator().manual_seed(seed))
            first, second = self.real[order[: len(order) // 2]], self.real[order[len(order) // 2 :]]
            distances.append(frechet_distance(*moments(first), *moments(second)))
        return distances

    def floor(self) -> dict[str, float]:
        """Returns the "fid" of real images among themselves, the mean of `halves`; {} without images."""
        halves = self.halves()
        return {"fid": statistics.fmean(halves)} if halves else {}

    def fid(self, images: Tensor) -> float:
        """Returns the Frechet distance between images (N, C, H, W) and the real ones."""
        features = self.features(images)
        generated = Moments(features.shape[1], self.extractor.dtype, features.device)
        generated.update(features)
        return fid(generated, self.extractor.reference)

    def measure(self, images: Tensor, context: Context) -> dict[str, float]:
        """Returns what images (N, C, H, W) of labels (N,) are worth: `Measurement.metrics`.

        Raises:
            ValueError: for fewer images than the metrics need.
        """
        measurement = Measurement(self.extractor, len(images))
        measurement.update(images, context)
        return measurement.metrics()


def check_number(extractor: Extractor, num_images: int) -> None:
    """Raises a ValueError for fewer images than the metrics need."""
    dim = len(extractor.reference.mean)
    if num_images <= dim:
        raise ValueError(
            f"the metrics need more images than the {dim} feature dimensions, got {num_images}: "
            "raise the number of images"
        )


class Measurement:
    """What a judge has learned of images that come batch by batch.

    Its size is bounded: sums over all images, and what the network said of the first `KEPT_FEATURES`.

    Args:
        extractor: of the judge.
        num_images: how many will come.

    Raises:
        ValueError: for fewer images than the metrics need.
    """

    def __init__(self, extractor: Extractor, num_images: int):
        check_number(extractor, num_images)
        dim = len(extractor.reference.mean)
        self.extractor, self.num_images, self.dim = extractor, num_images, dim
        self.moments = Moments(dim, extractor.dtype, extractor.device)
        self.score = InceptionScore(num_images, extractor.num_classes, extractor.device)
        # of each class: images, and images that are recognised
        self.seen = torch.zeros(extractor.num_classes, dtype=torch.int64, device=extractor.device)
        self.right = torch.zeros_like(self.seen)
        self.features: list[Tensor] = []
        self.logits: list[Tensor] = []
        self.labels: list[Tensor] = []

    @torch.no_grad()
    def update(self, images: Tensor, context: Context) -> None:
        """Judges images (N, C, H, W) in [0, 1] of labels (N,)."""
        features, logits = self.extractor(images)
        room = max(0, KEPT_FEATURES - self.moments.count)
        self.moments.update(features)
        self.score.update(logits)
        if room:
            self.features.append(features[:room].clone())
        if not self.extractor.labelled:
            return
        labels = context.to(logits.device)
        self.seen += labels.bincount(minlength=len(self.seen))
        self.right += labels[logits.argmax(1) == labels].bincount(minlength=len(self.right))
        if room:
            self.logits.append(logits[:room].clone())
            self.labels.append(labels[:room].clone())

    def metrics(self) -> dict[str, float]:
        """Returns fid, kid, precision, recall, density, coverage, inception_score and accuracy of the images.

        KID, precision, recall, density and coverage are those of the first `KEPT_FEATURES`.
        """
        found = {"fid": fid(self.moments, self.extractor.reference)}
        generated, real = torch.cat(self.features), self.extractor.real
        if real is not None:
            found["kid"] = kid(generated, real)
            found["precision"], found["recall"] = precision_recall(generated, real)
            found["density"], found["coverage"] = density_coverage(generated, real)
        found["inception_score"] = self.score.mean()
        if self.extractor.labelled:
            found["accuracy"] = self.right.sum().item() / self.num_images
        return found

    def class_accuracy(self) -> list[float]:
        """Returns the accuracy of each class, nan where it had no image; empty without a classifier of the labels."""
        return (self.right / self.seen).tolist() if self.extractor.labelled else []

    def intervals(self, metrics: Mapping[str, float]) -> dict[str, Interval]:
        """Returns bootstrap intervals of fid, inception_score and accuracy, resampled within each label.

        There are none beyond `BOOTSTRAP_DIM` dimensions or `KEPT_FEATURES` images, nor of the metrics of neighbours and
        kernels, which repeated images deceive: repetitions on other seeds give those.

        Args:
            metrics: what `metrics` returned.
        """
        if self.dim > BOOTSTRAP_DIM or self.num_images > KEPT_FEATURES or not self.extractor.labelled:
            return {}
        features, logits, labels = (torch.cat(parts) for parts in (self.features, self.logits, self.labels))
        right = logits.argmax(1) == labels
        reference = self.extractor.reference

        def resampled(index: Tensor) -> dict[str, float]:
            return {
                "fid": frechet_distance(*moments(features[index]), reference.mean, reference.covariance),
                "inception_score": inception_score(logits[index])[0],
                "accuracy": right[index].double().mean().item(),
            }

        values = {name: metrics[name] for name in ("fid", "inception_score", "accuracy")}
        return bootstrap(resampled, values, labels)
