"""Leave-one-out FID: what a sample does to the distance of its batch from the real images (arXiv 2603.23086)."""

from __future__ import annotations

import torch
from torch import Tensor

from genenv.checkpoints import backbone_folder, load_generator, load_tensors
from genenv.models.digits_classifier import DigitsClassifier
from genenv.protocols import Context

Moments = tuple[Tensor, Tensor]


def loo_fid_from_features(features: Tensor, ema: Moments, reference: Moments, beta: float) -> Tensor:
    """Returns how much each sample brings the moving feature moments towards the reference, (N,) float64.

    r_i = d(EMA with the batch without i) - d(EMA with the batch), with the diagonal Frechet distance
    d = |mu_ref - mu|^2 + |std_ref - std|^2. Positive: the sample helps. For N = 1 the batch without i is empty, and
    its EMA is the old one.

    Args:
        features: (N, D).
        ema: moving averages of the first and second moments, each (D,), before this batch.
        reference: mean and standard deviation of the real features, each (D,).
        beta: weight of the old average; 0 takes the batch alone.
    """
    features = features.double()
    old1, old2 = (m.double() for m in ema)
    n = len(features)
    sum1, sum2 = features.sum(0), features.square().sum(0)
    with_all = _distance(_blend(old1, sum1 / n, beta), _blend(old2, sum2 / n, beta), reference)
    if n == 1:
        without = _distance(old1, old2, reference)[None]
    else:
        mean1, mean2 = (sum1 - features) / (n - 1), (sum2 - features.square()) / (n - 1)  # (N, D)
        without = _distance(_blend(old1, mean1, beta), _blend(old2, mean2, beta), reference)
    return without - with_all


def _blend(old: Tensor, new: Tensor, beta: float) -> Tensor:
    return beta * old + (1 - beta) * new


def _distance(first: Tensor, second: Tensor, reference: Moments) -> Tensor:
    mean, std = (r.double() for r in reference)
    spread = ((second - first.square()).clamp(min=0) + 1e-12).sqrt()
    return (mean - first).square().sum(-1) + (std - spread).square().sum(-1)


class LeaveOneOutFID:
    """Rewards each image by its share in lowering the moving distance between generated and real images.

    The moments of the generated features move with every batch, by the same amount for the same number of images: a
    batch of N weighs 1 - beta with beta = 0.5 ** (N / half_life). The paper's beta of 0.5 is a half-life of one
    batch. The first batch is taken as it is (the bias of an empty start is corrected), so a lone first image is
    paid 0. The reward is `loo_fid_from_features` times N / (2 (1 - beta)), which makes it, to first order, the product
    of an image's deviation from its batch with the batch's bias, whatever N and beta are.

    Args:
        extractor: gives the features (N, D) of images.
        reference: mean and standard deviation of the real features, each (D,).
        half_life: images after which old moments weigh half, above 0.
    """

    name = "loo_fid"

    def __init__(self, extractor: DigitsClassifier, reference: Moments, half_life: float = 256.0):
        if not half_life > 0:
            raise ValueError(f"half_life must be above 0, got {half_life}")
        self.extractor, self.half_life = extractor, half_life
        self.mean, self.std = reference
        self.reset()

    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,) and moves the moments by this batch. Features are standardised, so a unit is a real std."""
        features = ((self.extractor.features(images) - self.mean) / self.std).double()
        n = len(features)
        decay = 0.5 ** (n / self.half_life)
        # A debiased average is a plain one whose old part weighs as much as the images seen before.
        seen = decay * self.seen
        beta = seen / (seen + 1 - decay)
        if n == 1 and beta == 0:
            reward = features.new_zeros(1)
        else:
            unit = (torch.zeros_like(self.mean), torch.ones_like(self.std))
            change = loo_fid_from_features(features, (self.first, self.second), unit, beta)
            reward = n / (2 * (1 - beta)) * change
        self.first = _blend(self.first, features.mean(0), beta)
        self.second = _blend(self.second, features.square().mean(0), beta)
        self.seen = seen + 1 - decay
        return reward.float()

    def reset(self) -> None:
        """Forgets every batch."""
        self.first = torch.zeros_like(self.mean, dtype=torch.float64)
        self.second = torch.zeros_like(self.mean, dtype=torch.float64)
        self.seen = 0.0  # total weight of the batches so far, 1 in the long run

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the moving moments."""
        return {
            "first": self.first,
            "second": self.second,
            "seen": torch.tensor(self.seen, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the moving moments."""
        self.first, self.second = state["first"].to(self.mean.device), state["second"].to(self.mean.device)
        self.seen = state["seen"].item()


def make(backbone: str, device: str) -> LeaveOneOutFID:
    """Returns the reward of a backbone's tier, on a feature extractor that no held-out metric uses."""
    extractor = load_generator("reward_features", backbone).to(device)
    statistics = load_tensors(backbone_folder(backbone) / "reference.safetensors")
    mean, std = statistics["reward_features.mean"], statistics["reward_features.std"]
    return LeaveOneOutFID(extractor, (mean.to(device), std.to(device)))
