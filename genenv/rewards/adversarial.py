"""The adversarial reward: a discriminator that is trained while the policy learns (AdaGen)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.checkpoints import load_generator
from genenv.protocols import Context


class AdversarialReward:
    """Pays how real an image looks to a discriminator, sigmoid(mean logit) in (0, 1).

    The agent owns the discriminator's optimiser and minimises `loss` in turn with its own.

    Args:
        discriminator: (images, context) -> logits (N, places), large meaning real.
    """

    name = "adversarial"

    def __init__(self, discriminator: nn.Module):
        self.discriminator = discriminator

    @torch.no_grad()
    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,) in (0, 1)."""
        self.discriminator.eval()
        return self.discriminator(images, context).mean(1).sigmoid()

    def loss(self, fake: Tensor, real: Tensor, context: Context) -> Tensor:
        """Returns the non-saturating loss softplus(-D(real)) + softplus(D(fake)), a scalar.

        Args:
            fake: (N, C, H, W) generated images.
            real: (N, C, H, W) real images of the same contexts.
            context: (N,).
        """
        self.discriminator.train()
        logits = self.discriminator(torch.cat([fake, real]), torch.cat([context, context]))
        on_fake, on_real = logits.chunk(2)
        return F.softplus(on_fake).mean() + F.softplus(-on_real).mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns the discriminator's weights."""
        return self.discriminator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the discriminator."""
        self.discriminator.load_state_dict(state)


def pretrained(backbone: str, device: str) -> AdversarialReward:
    """Returns the frozen discriminator that the zoo trained against random schedules of the backbone's MaskGIT.

    It is the default reward of the digits ids; the other paradigms' fakes it has not seen. PPO of Stable-Baselines3 at
    its defaults on MaskGIT, 3 minutes, 4 steps, 256 images at once; 3 seeds, each on 2,000 held-out images, mean and
    95 % interval:

        reward          FID              precision        recall           accuracy         images
        (untrained)     2.927 +- 0.278   0.895 +- 0.012   0.520 +- 0.046   0.996 +- 0.001   0
        loo_fid         1.137 +- 0.293   0.718 +- 0.089   0.785 +- 0.055   0.982 +- 0.011   44,928
        adversarial     1.082 +- 0.068   0.692 +- 0.058   0.806 +- 0.044   0.971 +- 0.012   45,653

    Command: `OMP_NUM_THREADS=1 python -m baselines.sb3 --minutes 3 --env-kwargs '{"reward": "adversarial"}'`, and
    "loo_fid" at the same time on the machine's other core. The discriminator's mean is the lower and its interval the
    narrower one; it also judges each image by itself, so that it serves a single environment as well as a batch.
    A policy that trains much longer may find the weak spots of any; train the discriminator in turn then, as
    `agents.adagen` does.
    """
    return AdversarialReward(load_generator("discriminator", backbone).to(device))
