"""The held-out judge of the digits tier."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from genenv.checkpoints import backbone_folder, load_generator, load_tensors
from genenv.data import digits
from genenv.metrics.frechet import frechet_distance, moments
from genenv.metrics.neighbours import density_coverage
from genenv.protocols import Context

KID_SUBSETS, KID_SUBSET_SIZE = 20, 1000


class Judge:
    """Measures generated digits on the features of a classifier that no reward uses.

    The features are standardised over the real images, so every dimension weighs the same. KID, precision and recall
    are torch-fidelity's; precision and recall (Kynkaanniemi et al. 2019) use k = 3, density and coverage k = 5.

    Args:
        backbone: "digits", or a folder of the zoo.
    """

    def __init__(self, backbone: str = "digits"):
        try:
            import torch_fidelity  # noqa: F401
        except ImportError:
            raise ImportError("the metrics need torch-fidelity: pip install 'genenv[metrics]'") from None
        self.classifier = load_generator("judge", backbone)
        reference = load_tensors(backbone_folder(backbone) / "reference.safetensors")
        self.mean, self.std = reference["judge.mean"], reference["judge.std"]
        self.covariance = reference["judge.covariance"]

    @functools.cached_property
    def real(self) -> Tensor:
        """The standardised features (1797, D) of the real images."""
        return self.features(digits()[0])

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Returns standardised features (N, D) of images (N, 1, 8, 8) in [0, 1]."""
        return (self.classifier.features(images.cpu()) - self.mean) / self.std

    def fid(self, images: Tensor) -> float:
        """Returns the Frechet distance between images (N, 1, 8, 8) and the real ones."""
        generated = moments(self.features(images))
        return frechet_distance(*generated, torch.zeros_like(self.mean), self.covariance)

    @torch.no_grad()
    def measure(self, images: Tensor, context: Context) -> dict[str, float]:
        """Returns fid, kid, precision, recall, density, coverage and accuracy of images (N, 1, 8, 8) of labels (N,).

        Raises:
            ValueError: for fewer images than the metrics need.
        """
        from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, kid_features_to_metric
        from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

        if len(images) <= self.mean.numel():
            raise ValueError(
                f"the metrics need more images than the {self.mean.numel()} feature dimensions, got {len(images)}"
            )
        generated, real = self.features(images), self.real
        kid = kid_features_to_metric(
            generated,
            real,
            kid_subsets=KID_SUBSETS,
            kid_subset_size=min(KID_SUBSET_SIZE, len(generated)),
            verbose=False,
        )
        prc = prc_features_to_metric(generated, real, verbose=False)
        density, coverage = density_coverage(generated, real)
        predicted = self.classifier(images.cpu()).argmax(1)
        return {
            "fid": self.fid(images),
            "kid": kid[KEY_METRIC_KID_MEAN],
            "precision": prc[KEY_METRIC_PRECISION],
            "recall": prc[KEY_METRIC_RECALL],
            "density": density,
            "coverage": coverage,
            "accuracy": (predicted == context.cpu()).float().mean().item(),
        }
