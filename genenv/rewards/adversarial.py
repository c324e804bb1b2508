"""The adversarial reward: a discriminator that is trained while the policy learns (AdaGen)."""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.projected_discriminator import VIRTUAL_BATCH
from genenv.protocols import Context
from genenv.tiers import load_part, parts_of, tier_of

Objective: TypeAlias = Literal["bce", "hinge"]

CHUNK = 256
"""Images that are judged at a time, at most, a multiple of the projected discriminator's virtual batch."""


def adversarial_loss(fake: Tensor, real: Tensor, objective: Objective = "bce") -> Tensor:
    """Returns a discriminator's loss, a scalar.

    "bce" is softplus(-real) + softplus(fake) (Goodfellow et al. 2014), "hinge" relu(1 - real) + relu(1 + fake) (Lim
    and Ye 2017), each a mean.

    Args:
        fake: logits of generated images, of any shape.
        real: logits of real images.
        objective: which of them.
    """
    if objective == "hinge":
        return F.relu(1 + fake).mean() + F.relu(1 - real).mean()
    return F.softplus(fake).mean() + F.softplus(-real).mean()


class AdversarialReward:
    """Pays how real an image looks to a discriminator, sigmoid(mean logit) in (0, 1).

    The agent owns the discriminator's optimiser and minimises `loss` in turn with its own; with several processes it
    sums the gradients over them in between (`agents.processes.sum_gradients`).

    Args:
        discriminator: (images, context) -> logits (N, places), large meaning real. One that compares the images of a
            call, as batch norm does, has an attribute `uses_batch_statistics = True`.
        objective: of `adversarial_loss`.
    """

    name = "adversarial"

    def __init__(self, discriminator: nn.Module, objective: Objective = "bce"):
        if objective not in get_args(Objective):
            raise ValueError(f"objective must be one of {', '.join(get_args(Objective))}, got {objective!r}")
        self.discriminator = discriminator
        self.objective: Objective = objective

    @torch.no_grad()
    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,) in (0, 1)."""
        self.discriminator.eval()
        # Chunks of about equal size, in whole virtual batches, so that none holds a few images alone.
        batches = torch.arange(len(images)).split(VIRTUAL_BATCH)
        parts = torch.arange(len(batches)).tensor_split(math.ceil(len(images) / CHUNK))
        ends = [VIRTUAL_BATCH * (int(part[-1]) + 1) for part in parts[:-1]]
        chunks = zip(images.tensor_split(ends), context.tensor_split(ends), strict=True)
        return torch.cat([self.discriminator(*chunk).mean(1).sigmoid() for chunk in chunks])

    def loss(self, fake: Tensor, real: Tensor, context: Context) -> Tensor:
        """Returns the discriminator's loss in training mode, a scalar.

        Args:
            fake: (N, C, H, W) generated images.
            real: (N, C, H, W) real images of the same contexts.
            context: (N,), or (N, D) embeddings of texts.
        """
        self.discriminator.train()
        if getattr(self.discriminator, "uses_batch_statistics", False):
            # Real and generated images must not be normalised together.
            on_fake, on_real = self.discriminator(fake, context), self.discriminator(real, context)
        else:
            logits = self.discriminator(torch.cat([fake, real]), torch.cat([context, context]))
            on_fake, on_real = logits.chunk(2)
        return adversarial_loss(on_fake, on_real, self.objective)

    def state_dict(self) -> dict[str, Any]:
        """Returns the discriminator's weights."""
        return self.discriminator.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the discriminator."""
        self.discriminator.load_state_dict(state)


def discriminator(backbone: str, num_classes: int, generator: torch.Generator | None = None) -> nn.Module:
    """Returns an untrained discriminator for the images of a backbone, that of its tier.

    For digits it is a small convolutional one, for ImageNet the projected one over DINO's ViT-S/16, whose weights are
    downloaded, or read from `genenv.checkpoints.checkpoint_folder`. With "random:" before the backbone's name they are
    random.

    Args:
        backbone: a backbone's name, or a folder with a manifest.
        num_classes: class labels.
        generator: draws the crops of the projected one, on the CPU; None for torch's own.

    Raises:
        ValueError: if there is no such backbone, or its tier has no discriminator.
        CheckpointError: if the weights are missing and cannot be downloaded, damaged, or others.
        ImportError: without timm, for ImageNet.
    """
    return tier_of(backbone).need("discriminator")(backbone, num_classes, generator)


def pretrained(backbone: str, device: str) -> AdversarialReward:
    """Returns the frozen discriminator that the zoo trained against random schedules of the backbone's MaskGIT.

    It is the default reward of the digits ids; the other paradigms' fakes it has not seen. PPO of Stable-Baselines3 at
    its defaults on MaskGIT from the published schedule, 3 minutes, 4 steps, 256 images at once; 3 seeds, each on 2,000
    held-out images, mean and 95 % interval:

        reward          FID              precision        recall           accuracy         images
        (untrained)     2.790 +- 0.173   0.892 +- 0.022   0.518 +- 0.026   0.998 +- 0.001   0
        loo_fid         1.046 +- 0.025   0.723 +- 0.065   0.783 +- 0.019   0.983 +- 0.007   38,101
        adversarial     1.080 +- 0.084   0.691 +- 0.098   0.812 +- 0.043   0.972 +- 0.010   31,659

    Command: `OMP_NUM_THREADS=1 python -m baselines.sb3 --minutes 3 --env-kwargs '{"reward": "adversarial", "schedule":
    "published"}'`, and "loo_fid", on a machine whose other core was busy. The two are level; the discriminator judges
    each image by itself, so that it serves a single environment as well as a batch. A policy that trains much longer
    may find the weak spots of any; train the discriminator in turn then, as `agents.adagen` does.

    Raises:
        ValueError: if the backbone has none, as the released ones.
    """
    if "discriminator" not in parts_of(backbone):
        raise ValueError(
            f"reward 'adversarial' has no trained discriminator for backbone {backbone!r}; train one in turn with the "
            "policy, as agents.adagen does, or use another reward, such as 'clip'"
        )
    return AdversarialReward(load_part("discriminator", backbone).to(device))
