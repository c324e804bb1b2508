"""How well images show what their prompts say (Hessel et al. 2021)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genenv.models.clip import CLIP


@torch.no_grad()
def clip_score(encoder: CLIP, prompts: Sequence[str], images: Tensor, labels: Tensor) -> float:
    """Returns the mean cosine of images and the prompts of their labels, in [-1, 1].

    The plain mean: papers also print 100 times it, or 2.5 times its positive part (Hessel et al. 2021, eq. 1). Which
    network and which prompts were used belongs beside the number.

    Args:
        encoder: embeds images and texts.
        prompts: one text for each class label.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) int64.
    """
    texts = encoder.encode_texts(prompts)[labels]
    return encoder.cosines(images, texts).mean().item()
