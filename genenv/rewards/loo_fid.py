"""Leave-one-out FID: what a sample does to the distance of its batch from the real images (arXiv 2603.23086)."""

from __future__ import annotations

import torch
from torch import Tensor

from genenv.distributed import num_ranks, sum_over_ranks
from genenv.metrics.frechet import symmetric_root
from genenv.protocols import Context
from genenv.rewards.features import FeatureExtractor, reward_features

Moments = tuple[Tensor, Tensor]

MODES = ("ema", "loo_batch", "ema_scalar")
CHUNK = 2**24
"""Numbers in the covariances that are taken apart at a time."""


def loo_fid_from_features(features: Tensor, ema: Moments, reference: Moments, beta: float) -> Tensor:
    """Returns how much each sample brings the moving feature moments towards the reference, (N,) float64.

    r_i = d(EMA with the batch without i) - d(EMA with the batch), with the diagonal Frechet distance
    d = |mu_ref - mu|^2 + |std_ref - std|^2, or the full one where the second moments are matrices. Positive: the
    sample helps. For N = 1 the batch without i is empty, and its EMA is the old one. Costs O(N D), and O(N D^3) with
    matrices.

    Args:
        features: (N, D).
        ema: moving averages of the first and second moments, (D,) and (D,) or (D, D), before this batch.
        reference: mean (D,) and standard deviation (D,), or covariance (D, D), of the real features.
        beta: weight of the old average; 0 takes the batch alone.

    Raises:
        ValueError: if `ema` is diagonal and `reference` is not, or the other way round.
    """
    if ema[1].ndim != reference[1].ndim:
        raise ValueError(
            "ema and reference must both be diagonal or both hold matrices, "
            f"got {tuple(ema[1].shape)} and {tuple(reference[1].shape)}"
        )
    features = features.double()
    sums = features.sum(0), _sum_of_squares(features, full=ema[1].ndim == 2)
    return _leave_one_out(features, len(features), sums, ema, _Distance(reference), beta)


def _leave_one_out(
    features: Tensor, count: int, sums: Moments, ema: Moments, distance: _Distance, beta: float
) -> Tensor:
    """Returns the rewards of features (N, D) that are part of a batch of `count` samples with these moment sums."""
    ema = ema[0].double(), ema[1].double()
    with_all = distance(_blend(ema, (sums[0] / count, sums[1] / count), beta))
    if count == 1:
        return (distance(ema) - with_all).expand(len(features))

    def without(left_out: Tensor) -> Tensor:
        squares = _squares(left_out, full=ema[1].ndim == 2)
        rest = (sums[0] - left_out) / (count - 1), (sums[1] - squares) / (count - 1)
        return distance(_blend(ema, rest, beta))

    rows = max(1, CHUNK // ema[1].numel())
    return torch.cat([without(chunk) for chunk in features.split(rows)]) - with_all


def _squares(features: Tensor, full: bool) -> Tensor:
    """Returns the second moments of single samples, (N, D) or (N, D, D)."""
    return features[:, :, None] * features[:, None] if full else features.square()


def _sum_of_squares(features: Tensor, full: bool) -> Tensor:
    return features.T @ features if full else features.square().sum(0)


def _blend(old: Moments, new: Moments, beta: float) -> Moments:
    return beta * old[0] + (1 - beta) * new[0], beta * old[1] + (1 - beta) * new[1]


class _Distance:
    """The Frechet distance of first and second moments, (..., D) and (..., D) or (..., D, D), to a reference."""

    def __init__(self, reference: Moments):
        self.mean, self.spread = (r.double() for r in reference)
        if self.spread.ndim == 2:
            self.root = symmetric_root(self.spread)

    def __call__(self, moments: Moments) -> Tensor:
        first, second = moments
        bias = (self.mean - first).square().sum(-1)
        if self.spread.ndim == 1:
            std = ((second - first.square()).clamp(min=0) + 1e-12).sqrt()
            return bias + (self.spread - std).square().sum(-1)
        covariance = second - first[..., :, None] * first[..., None, :]
        # tr (S S_ref)^(1/2) from the symmetric root S_ref^(1/2) S S_ref^(1/2).
        cross = torch.linalg.eigvalsh(self.root @ covariance @ self.root).clamp(min=0).sqrt().sum(-1)
        trace = covariance.diagonal(dim1=-2, dim2=-1).sum(-1) + self.spread.trace()
        return bias + trace - 2 * cross


class LeaveOneOutFID:
    """Rewards each image by its share in lowering the moving distance between generated and real images.

    The moments of the generated features move with every batch. As published, old ones keep the weight `beta` (0.5);
    by default they move by the same amount for the same number of images, beta = 0.5 ** (N / half_life). The first
    batch is taken as it is (the bias of an empty start is corrected), so a lone first image is paid 0. The reward is
    `loo_fid_from_features` times N / (2 (1 - beta)), which makes it, to first order, the product of an image's
    deviation from its batch with the batch's bias, whatever N and beta are. With several processes the batch is that of
    all of them.

    Args:
        extractor: gives the features (N, D) of images.
        reference: mean (D,) and standard deviation (D,), or covariance (D, D), of the real features. With a
            covariance the distance is the full one; it costs an eigenvalue problem of size D for each image.
        half_life: images after which old moments weigh half, above 0; where `beta` is not given.
        beta: weight of the old moments at each batch, in [0, 1).
        standardise: measure in standard deviations of the real features, so that every dimension weighs the same;
            the paper does not.
        mode: "ema"; "loo_batch" forgets earlier batches and needs two images; "ema_scalar" pays every image what the
            whole batch did to the moving distance, without the factor N.
    """

    name = "loo_fid"

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Moments,
        half_life: float = 256.0,
        mode: str = "ema",
        beta: float | None = None,
        standardise: bool = True,
    ):
        if not half_life > 0:
            raise ValueError(f"half_life must be above 0, got {half_life}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if beta is not None and not 0 <= beta < 1:
            raise ValueError(f"beta must be in [0, 1), got {beta}")
        self.extractor, self.half_life, self.mode, self.beta = extractor, half_life, mode, beta
        self.mean, spread = reference
        self.full = spread.ndim == 2
        self.std = torch.ones_like(self.mean)
        if standardise:
            self.std = spread.diagonal().sqrt() if self.full else spread
        unit = spread / self.std[:, None] / self.std if self.full else spread / self.std
        self.distance = _Distance((torch.zeros_like(self.mean), unit))
        self.reset()

    @torch.no_grad()
    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,) and moves the moments by this batch.

        Raises:
            ValueError: in the mode "loo_batch" for a lone image.
        """
        features = ((self.extractor.features(images) - self.mean) / self.std).double()
        local = features.sum(0), _sum_of_squares(features, self.full)
        n = len(features)
        if num_ranks() > 1:
            n = round(sum_over_ranks(features.new_tensor(float(n))).item())
        sums = sum_over_ranks(local[0]), sum_over_ranks(local[1])
        decay = 0.5 ** (n / self.half_life) if self.beta is None else self.beta
        if self.mode == "loo_batch":
            decay = 0.0
        # A debiased average is a plain one whose old part weighs as much as the images seen before.
        seen = decay * self.seen
        beta = seen / (seen + 1 - decay)
        old = self.first, self.second
        moved = _blend(old, (sums[0] / n, sums[1] / n), beta)
        if self.mode == "loo_batch" and n == 1:
            raise ValueError("loo_fid in the mode 'loo_batch' needs at least 2 images at once, got 1")
        if beta == 0 and (n == 1 or self.mode == "ema_scalar"):
            reward = features.new_zeros(len(features))
        elif self.mode == "ema_scalar":
            reward = ((self.distance(old) - self.distance(moved)) / (2 * (1 - beta))).expand(len(features))
        else:
            change = _leave_one_out(features, n, sums, old, self.distance, beta)
            reward = n / (2 * (1 - beta)) * change
        (self.first, self.second), self.seen = moved, seen + 1 - decay
        return reward.float()

    def reset(self) -> None:
        """Forgets every batch."""
        self.first = torch.zeros_like(self.mean, dtype=torch.float64)
        self.second = torch.zeros_like(self.distance.spread)
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
    """Returns the diagonal reward on the features of `genenv.rewards.features.reward_features`."""
    extractor, mean, covariance = reward_features(backbone, device)
    return LeaveOneOutFID(extractor, (mean, covariance.diagonal().sqrt()))


def make_full(backbone: str, device: str) -> LeaveOneOutFID:
    """Returns the reward with the full covariance, whose many moments remember four times as many images."""
    extractor, mean, covariance = reward_features(backbone, device)
    reward = LeaveOneOutFID(extractor, (mean, covariance), half_life=1024.0)
    reward.name = "loo_fid_full"
    return reward
