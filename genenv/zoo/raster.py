"""Trains the raster autoregressive generators of the digits tier."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.data import digits
from genenv.models.digits_vq import DigitsVQ
from genenv.models.llamagen import LlamaGenTransformer, llamagen_digits
from genenv.models.raster import RasterTransformer
from genenv.models.vqgan_transformer import VQGANTransformer, vqgan_digits
from genenv.zoo.training import Progress, fit, without_some

Model = TypeVar("Model", bound=RasterTransformer)


def train_llamagen(
    tokenizer: DigitsVQ,
    seed: int = 0,
    num_steps: int = 3000,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> LlamaGenTransformer:
    """Returns a class-conditional LlamaGen (Sun et al. 2024, sec. 2.2)."""
    return _train(llamagen_digits, tokenizer, seed, num_steps, batch_size, progress)


def train_vqgan(
    tokenizer: DigitsVQ,
    seed: int = 0,
    num_steps: int = 3000,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> VQGANTransformer:
    """Returns a class-conditional transformer of VQGAN (Esser et al. 2021, sec. 3.2)."""
    return _train(vqgan_digits, tokenizer, seed, num_steps, batch_size, progress)


def _train(
    make: Callable[[float], Model],
    tokenizer: DigitsVQ,
    seed: int,
    num_steps: int,
    batch_size: int,
    progress: Progress | None,
) -> Model:
    """Returns the network make(dropout) after next-token prediction in raster order.

    1,797 images are soon learnt by heart: dropout, and a tenth of the tokens read replaced by random ones, hold against
    it. A tenth of the labels is replaced by the null class, for classifier-free guidance.
    """
    torch.manual_seed(seed)
    images, labels = digits()
    tokens = tokenizer.encode(images).flatten(1)  # (1797, 16)
    model = make(0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.96), weight_decay=0.03)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(tokens), (batch_size,))
        target, label = tokens[index], without_some(labels[index], 0.1, model.num_classes)
        noise = torch.randint(model.codebook_size, target.shape)
        read = torch.where(torch.rand(target.shape) < 0.1, noise, target)
        logits, _ = model(read[:, :-1], label)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    return fit(model, optimiser, loss_of, num_steps, 0.999, progress, max_gradient=1.0)
