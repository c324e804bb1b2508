"""The algorithms that AdaScope is plugged into: the loss of each, of the decisions that receive gradient.

A unit is what a loss is told of at once: one image's decision or, where preferences are learned, the same decision of
two images of one context. All probabilities are log-densities per number of the latents, so that ratios mean the same
whatever the latents' size is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from agents.losses import ppo_policy_loss


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is known of M units of k images, (M, k) each.

    Attributes:
        log_prob: of the next latents, under the policy.
        old: under the policy that sampled them.
        reference: under the policy before training; None where the host asks for none.
        kl: KL(policy || before training) of the step, per number of the latents, exact; None likewise.
        advantage: what the decision is credited with.
    """

    log_prob: Tensor
    old: Tensor
    reference: Tensor | None
    kl: Tensor | None
    advantage: Tensor


class Weights(Protocol):
    """What the losses take from a configuration.

    Attributes:
        clip: trust region of a ratio.
        kl_weight: of the KL.
        beta: how strongly preferences move log-probabilities.
    """

    @property
    def clip(self) -> float: ...  # noqa: D102
    @property
    def kl_weight(self) -> float: ...  # noqa: D102
    @property
    def beta(self) -> float: ...  # noqa: D102


Loss = Callable[[Terms, Weights], Tensor]
"""(terms, weights) -> the loss of each unit, (M,), to be averaged."""


def score_function(terms: Terms, weights: Weights) -> Tensor:
    """Returns -A log p (DDPO-SF; Black et al. 2024, eq. 4): for samples of the policy as it is."""
    return (-terms.advantage * terms.log_prob)[:, 0]


def importance_sampled(terms: Terms, weights: Weights) -> Tensor:
    """Returns -min(r A, clip(r) A), r the ratio to the policy that sampled (DDPO-IS; Black et al. 2024, eq. 5)."""
    return ppo_policy_loss(terms.log_prob, terms.old, terms.advantage, weights.clip)[:, 0]


def regularised(terms: Terms, weights: Weights) -> Tensor:
    """Returns that plus the weighted KL of each step to the policy before training.

    DPOK (Fan et al. 2023, eq. 7) and Flow-GRPO (arXiv 2505.05470, eq. 5). The KL is that of two Gaussians with one
    covariance; the released code of D3PO, which has a DPOK beside it, takes one over the batch, which is 0 for a single
    image. DPOK's hard bounds on the ratio, outside of which no gradient brings it back, are PPO's here.
    """
    assert terms.kl is not None
    return importance_sampled(terms, weights) + weights.kl_weight * terms.kl[:, 0]


def preferred(terms: Terms, weights: Weights) -> Tensor:
    """Returns -log sigmoid(beta (log r_winner - log r_loser)), r the clipped ratio to before training (D3PO, eq. 12).

    The first image of a unit is the one that is preferred (Yang et al. 2024).
    """
    assert terms.reference is not None
    ratio = (terms.log_prob - terms.reference).exp().clamp(1 - weights.clip, 1 + weights.clip).log()
    return -F.logsigmoid(weights.beta * (ratio[:, 0] - ratio[:, 1]))


@dataclasses.dataclass(frozen=True)
class Host:
    """An algorithm.

    Attributes:
        loss: of its units.
        baseline: what a reward is compared with: that of earlier images of its "context", of its "group", or of "none".
        has_reference: whether it asks for the policy before training.
        in_pairs: whether its units are pairs of images of one group.
        has_critic: whether a critic of each decision is subtracted from the reward.
        clips: whether its loss clips the ratio to the policy that sampled.
    """

    loss: Loss
    baseline: str = "context"
    has_reference: bool = False
    in_pairs: bool = False
    has_critic: bool = False
    clips: bool = True


# Where they differ from the papers: DPOK has a value network for its baseline, here the statistics of the context's
# rewards; TDPO takes an optimiser's step for every decision of the trajectory, here there is one for all of them.
HOSTS = {
    "ddpo": Host(importance_sampled),
    "ddpo-sf": Host(score_function, clips=False),
    "dpok": Host(regularised, has_reference=True),
    "d3po": Host(preferred, baseline="none", has_reference=True, in_pairs=True, clips=False),
    "tdpo": Host(importance_sampled, has_critic=True),
    "flow-grpo": Host(regularised, baseline="group", has_reference=True),
}
"""By name."""
