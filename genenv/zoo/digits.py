"""Trains every network of the digits tier from scikit-learn's images (`genenv zoo build digits`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.data import digits
from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_vq import DigitsVQ
from genenv.models.maskgit import MaskGITTransformer, maskgit_digits

Progress = Callable[[int, int, float], None]
"""Called as progress(step, num_steps, loss)."""


class WeightAverage:
    """Exponential moving average of a network's parameters, the weights that are shipped."""

    def __init__(self, model: nn.Module, decay: float = 0.999):
        self.decay = decay
        self.average = {k: v.detach().clone() for k, v in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Moves the average towards `model`; the decay warms up so that early weights are forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for key, value in model.state_dict().items():
            self.average[key].lerp_(value, 1 - decay)


def _cosine(optimiser: torch.optim.Optimizer, num_steps: int, warmup: int = 100):
    """Linear warm-up, then a cosine to 0."""
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, num_steps - warmup)
    rise = torch.optim.lr_scheduler.LinearLR(optimiser, 0.01, total_iters=warmup)
    return torch.optim.lr_scheduler.SequentialLR(optimiser, [rise, decay], [warmup])


def train_tokenizer(
    seed: int = 0, num_steps: int = 4000, batch_size: int = 256, progress: Progress | None = None
) -> DigitsVQ:
    """Returns a VQ tokenizer trained on the squared error of the pixels.

    The codebook follows its codes as moving averages (van den Oord et al. 2017, appendix A.1) from a warm start on
    the unquantised autoencoder; entries that nothing uses are moved onto latents of the batch.
    """
    torch.manual_seed(seed)
    images, _ = digits()
    model = DigitsVQ(width=32)
    optimiser = torch.optim.AdamW(
        [*model.encoder.parameters(), *model.decoder.parameters()], lr=2e-3, weight_decay=1e-4
    )
    schedule = _cosine(optimiser, num_steps)
    average = WeightAverage(model, 0.995)
    size = model.codebook_size
    usage, sums = torch.zeros(size), torch.zeros_like(model.codebook)
    warm_start, last_revival = num_steps // 10, num_steps * 3 // 4
    for step in range(num_steps):
        batch = images[torch.randint(len(images), (batch_size,))]
        latents = model.latents(batch)
        loss = torch.zeros(())
        quantised = latents
        if step >= warm_start:
            flat = latents.detach().reshape(-1, latents.shape[-1])
            if step == warm_start:
                model.codebook.copy_(flat[torch.randperm(len(flat))[:size]])
                usage.fill_(1.0)
                sums.copy_(model.codebook)
            codes = model.nearest(flat)
            one_hot = F.one_hot(codes, size).float()
            usage.lerp_(one_hot.sum(0), 0.01)
            sums.lerp_(one_hot.T @ flat, 0.01)
            if step < last_revival and step % 20 == 0:
                dead = usage < 0.1 * usage.mean()
                fresh = flat[torch.randperm(len(flat))[:size]]
                sums[dead], usage[dead] = fresh[dead] * usage.mean(), usage.mean()
            model.codebook.copy_(sums / usage.clamp(min=1e-5)[:, None])
            chosen = model.codebook[codes].view_as(latents)
            loss = 0.25 * F.mse_loss(latents, chosen)
            quantised = latents + (chosen - latents).detach()
        loss = loss + 4 * F.mse_loss(model.decode_latents(quantised), batch)  # x4: pixels in [-1, 1]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update(model, step)
        if progress is not None:
            progress(step + 1, num_steps, loss.item())
    model.load_state_dict(average.average)
    return model.eval().requires_grad_(False)


def train_maskgit(
    tokenizer: DigitsVQ,
    seed: int = 0,
    num_steps: int = 5000,
    batch_size: int = 256,
    label_dropout: float = 0.1,
    progress: Progress | None = None,
) -> MaskGITTransformer:
    """Returns a class-conditional MaskGIT (Chang et al. 2022, sec. 3.1): masked tokens under an arccos-density ratio.

    A share `label_dropout` of the labels is replaced by the null class, for classifier-free guidance.
    """
    torch.manual_seed(seed)
    images, labels = digits()
    tokens = tokenizer.encode(images).flatten(1)  # (1797, 16)
    model = maskgit_digits(dropout=0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.96), weight_decay=0.03)
    schedule = _cosine(optimiser, num_steps)
    average = WeightAverage(model)
    for step in range(num_steps):
        index = torch.randint(len(tokens), (batch_size,))
        target, label = tokens[index], labels[index].clone()
        label[torch.rand(batch_size) < label_dropout] = model.num_classes
        ratio = torch.cos(torch.rand(batch_size, 1) * torch.pi / 2)
        rank = torch.rand(target.shape).argsort(1).argsort(1)
        masked = rank < (ratio * target.shape[1]).ceil().clamp(min=1)
        logits, _ = model(target.masked_fill(masked, model.codebook_size), label)
        loss = F.cross_entropy(logits[masked], target[masked], label_smoothing=0.0)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        average.update(model, step)
        if progress is not None:
            progress(step + 1, num_steps, loss.item())
    model.load_state_dict(average.average)
    return model.eval().requires_grad_(False)


def _augment(images: Tensor) -> Tensor:
    """Shifts each image by up to half a pixel, turns it by up to 10 degrees, scales it by up to 10 % and adds noise."""
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 0.35
    scale = 1 + (torch.rand(n) - 0.5) * 0.2
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = (torch.rand(n, 2) - 0.5) * 0.25
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False) + 0.05 * torch.randn(images.shape)


def train_classifier(
    train: tuple[Tensor, Tensor],
    width: int,
    seed: int = 0,
    num_steps: int = 1500,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> DigitsClassifier:
    """Returns a digit classifier trained on augmented images (N, 1, 8, 8) and labels (N,)."""
    torch.manual_seed(seed)
    images, labels = train
    model = DigitsClassifier(width=width)
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = _cosine(optimiser, num_steps)
    average = WeightAverage(model, 0.995)
    for step in range(num_steps):
        index = torch.randint(len(images), (batch_size,))
        loss = F.cross_entropy(model(_augment(images[index])), labels[index], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        average.update(model, step)
        if progress is not None:
            progress(step + 1, num_steps, loss.item())
    model.load_state_dict(average.average)
    return model.eval().requires_grad_(False)
