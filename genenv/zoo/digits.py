"""Trains every network of the digits tier from scikit-learn's images (`genenv zoo build digits`)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.checkpoints import load_generator, save_tensors, write_manifest, write_text
from genenv.data import digits, real_like
from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.digits_vq import DigitsVQ
from genenv.models.maskgit import MaskGITTransformer, maskgit_digits
from genenv.rewards.adversarial import AdversarialReward
from genenv.rollout import run_episode
from genenv.zoo.card import write_card

Model = TypeVar("Model", bound=nn.Module)
Progress = Callable[[int, int, float], None]
"""Called as progress(step, num_steps, loss)."""


class WeightAverage:
    """Exponential moving average of a network's parameters, the weights that are shipped."""

    def __init__(self, model: nn.Module, decay: float):
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


def _fit(
    model: Model,
    optimiser: torch.optim.Optimizer,
    loss_of: Callable[[int], Tensor],
    num_steps: int,
    average_decay: float,
    progress: Progress | None,
    max_gradient: float = math.inf,
) -> Model:
    """Minimises loss_of(step) and returns the model with its averaged weights, frozen."""
    schedule = _cosine(optimiser, num_steps)
    average = WeightAverage(model, average_decay)
    for step in range(num_steps):
        loss = loss_of(step)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), max_gradient)
        optimiser.step()
        schedule.step()
        average.update(model, step)
        if progress is not None:
            progress(step + 1, num_steps, loss.item())
    model.load_state_dict(average.average)
    return model.eval().requires_grad_(False)


def train_tokenizer(
    seed: int = 0, num_steps: int = 4000, batch_size: int = 256, progress: Progress | None = None
) -> DigitsVQ:
    """Returns a VQ tokenizer trained on the squared error of the pixels.

    The codebook follows its codes as moving averages (van den Oord et al. 2017, appendix A.1) from a warm start on
    the unquantised autoencoder; entries that nothing uses are moved onto latents of the batch.
    """
    torch.manual_seed(seed)
    images, _ = digits()
    model = DigitsVQ()
    optimiser = torch.optim.AdamW(
        [*model.encoder.parameters(), *model.decoder.parameters()], lr=2e-3, weight_decay=1e-4
    )
    size = model.codebook_size
    usage, sums = torch.zeros(size), torch.zeros_like(model.codebook)
    warm_start, last_revival = num_steps // 10, num_steps * 3 // 4

    def loss_of(step: int) -> Tensor:
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
        return loss + 4 * F.mse_loss(model.decode_latents(quantised), batch)  # x4: pixels in [-1, 1]

    return _fit(model, optimiser, loss_of, num_steps, 0.995, progress)


def train_maskgit(
    tokenizer: DigitsVQ,
    seed: int = 0,
    num_steps: int = 6000,
    batch_size: int = 128,
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

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(tokens), (batch_size,))
        target, label = tokens[index], labels[index].clone()
        label[torch.rand(batch_size) < label_dropout] = model.num_classes
        ratio = torch.cos(torch.rand(batch_size, 1) * torch.pi / 2)
        rank = torch.rand(target.shape).argsort(1).argsort(1)
        masked = rank < (ratio * target.shape[1]).ceil().clamp(min=1)
        logits, _ = model(target.masked_fill(masked, model.codebook_size), label)
        return F.cross_entropy(logits[masked], target[masked])

    return _fit(model, optimiser, loss_of, num_steps, 0.999, progress, max_gradient=1.0)


def _augment(images: Tensor) -> Tensor:
    """Shifts each image by up to half a pixel, turns it by up to 10 degrees and scales it by up to 10 %."""
    n = len(images)
    angle = (torch.rand(n) - 0.5) * 0.35
    scale = 1 + (torch.rand(n) - 0.5) * 0.2
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    shift = (torch.rand(n, 2) - 0.5) * 0.25
    theta = torch.stack(
        [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)], 1
    )
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def train_classifier(
    train: tuple[Tensor, Tensor],
    width: int,
    seed: int = 0,
    num_steps: int = 1000,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> DigitsClassifier:
    """Returns a digit classifier trained on augmented images (N, 1, 8, 8) and labels (N,).

    Its features must also give the image back through a linear map. A classifier's alone forget how images of a class
    differ (here to 9 effective dimensions of 64), and metrics on them would not see lost diversity.
    """
    torch.manual_seed(seed)
    images, labels = train
    model = DigitsClassifier(width=width)
    decoder = nn.Linear(model.feature_dim, images[0].numel())
    optimiser = torch.optim.AdamW([*model.parameters(), *decoder.parameters()], lr=2e-3, weight_decay=0.05)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(images), (batch_size,))
        batch = _augment(images[index])
        features = model.features(batch + 0.05 * torch.randn(batch.shape))
        loss = F.cross_entropy(model.head(features), labels[index], label_smoothing=0.05)
        return loss + 400 * F.mse_loss(decoder(features), batch.flatten(1))

    return _fit(model, optimiser, loss_of, num_steps, 0.995, progress)


def train_discriminator(
    backbone: str, seed: int = 0, num_steps: int = 1500, progress: Progress | None = None
) -> DigitsDiscriminator:
    """Returns a discriminator of real digits and MaskGIT's under random schedules, for the frozen adversarial reward.

    The schedules are uniform over the action box, so that it has seen what a policy may try. Noise, blank images and
    digits of another label are among the fakes as well.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    env = gym.make_vec(
        "AdaGen/MaskGIT-v0", num_envs=1024, backbone=backbone, reward="none", autoreset_mode="Disabled"
    )
    model = DigitsDiscriminator()
    reward = AdversarialReward(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4, betas=(0.5, 0.999))
    shape = env.action_space.shape
    assert shape is not None
    images, context = [], []
    for batch in range(8):
        episode = run_episode(
            env, lambda _: 2 * torch.rand(shape, generator=generator) - 1, seed=batch * shape[0]
        )
        images.append(episode.images)
        context.append(episode.context)
    fakes, labels = torch.cat(images), torch.cat(context)
    for step in range(num_steps):
        index = torch.randint(len(fakes), (256,), generator=generator)
        label = labels[index]
        fake, real = fakes[index], real_like(label, generator)
        # Schedules draw neither of these, but a judge of digits must know them: an eighth each.
        fake[:32] = torch.rand(fake[:32].shape, generator=generator)
        fake[32:64] = 0
        other = torch.randint(1, 10, (32,), generator=generator)
        fake[64:96] = real_like((label[64:96] + other) % 10, generator)
        loss = reward.loss(fake, real, label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if progress is not None:
            progress(step + 1, num_steps, loss.item())
    return model.eval().requires_grad_(False)


def split(seed: int = 0, num_train: int = 1437) -> tuple[Tensor, Tensor]:
    """Returns the indices of the images the classifiers train on, and of the 360 they are tested on."""
    order = torch.randperm(len(digits()[0]), generator=torch.Generator().manual_seed(seed))
    return order[:num_train], order[num_train:]


def reference_statistics(folder: Path) -> dict[str, Tensor]:
    """Returns the feature moments of the real images: mean and std of both classifiers, the judge's covariance."""
    images, _ = digits()
    statistics = {}
    for name in ("judge", "reward_features"):
        features = load_generator(name, str(folder)).features(images)
        statistics[f"{name}.mean"], statistics[f"{name}.std"] = features.mean(0), features.std(0)
        if name == "judge":
            standardised = (features - features.mean(0)) / features.std(0)
            statistics["judge.covariance"] = torch.cov(standardised.T.double())
    return statistics


PARTS = ("vq", "judge", "reward_features", "reference", "maskgit", "discriminator")
"""What `build` makes, in order: later parts need earlier ones."""


def build(
    out: Path, only: str | None = None, progress: Callable[[str, int, int, float], None] | None = None
) -> None:
    """Trains the tier's networks and writes them, with their manifest and model card, into a folder.

    Args:
        out: the folder; usable as `backbone=str(out)`.
        only: one of `PARTS`, to rebuild that part alone in a folder that holds the others.
        progress: called as progress(part, step, num_steps, loss).
    """
    if only is not None and only not in PARTS:
        raise ValueError(f"--only must be one of {', '.join(PARTS)}, got {only!r}")
    out.mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    train_index, _ = split()
    train_set = images[train_index], labels[train_index]
    times = out / "build.json"
    seconds = json.loads(times.read_text()) if times.exists() else {}
    for part in PARTS if only is None else (only,):
        started = time.monotonic()
        report = None if progress is None else lambda s, n, loss, part=part: progress(part, s, n, loss)
        if part == "vq":
            tensors = train_tokenizer(progress=report).state_dict()
        elif part == "maskgit":
            tensors = train_maskgit(load_generator("vq", str(out)), progress=report).state_dict()
        elif part == "judge":
            tensors = train_classifier(train_set, width=32, seed=1, progress=report).state_dict()
        elif part == "reward_features":
            tensors = train_classifier(train_set, width=24, seed=2, progress=report).state_dict()
        elif part == "reference":
            tensors = reference_statistics(out)
        else:
            tensors = train_discriminator(str(out), progress=report).state_dict()
        save_tensors(tensors, out / f"{part}.safetensors")
        write_manifest(out)
        seconds[part] = round(time.monotonic() - started)
        write_text(times, json.dumps(seconds, indent=2) + "\n")
    write_card(out, seconds)
