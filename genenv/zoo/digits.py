"""Trains every network of the digits tier from scikit-learn's images (`genenv zoo build digits`)."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.checkpoints import read_json, save_tensors, write_text
from genenv.data import digits
from genenv.metrics.classifier import reference_statistics
from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.digits_vq import DigitsVQ
from genenv.models.maskgit import MaskGITTransformer, maskgit_digits
from genenv.rewards.adversarial import AdversarialReward
from genenv.tiers import load_part, write_manifest
from genenv.tiers.digits import DIGITS
from genenv.zoo.card import Contents, Generator, write_card
from genenv.zoo.ode import train_dit, train_sit
from genenv.zoo.raster import train_llamagen, train_vqgan
from genenv.zoo.scorers import check_scorers, train_clip, train_hpsv2
from genenv.zoo.training import CodebookAverage, Progress, augment, fit, random_schedules, without_some
from genenv.zoo.var import train_msvq, train_var


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
    codebook = CodebookAverage(model.codebook)
    warm_start, last_revival = num_steps // 10, num_steps * 3 // 4

    def loss_of(step: int) -> Tensor:
        batch = images[torch.randint(len(images), (batch_size,))]
        latents = model.latents(batch)
        loss = torch.zeros(())
        quantised = latents
        if step >= warm_start:
            flat = latents.detach().reshape(-1, latents.shape[-1])
            if step == warm_start:
                codebook.start(flat)
            codes = model.nearest(flat)
            codebook.update(flat, codes, revive=step < last_revival and step % 20 == 0)
            chosen = model.codebook[codes].view_as(latents)
            loss = 0.25 * F.mse_loss(latents, chosen)
            quantised = latents + (chosen - latents).detach()
        return loss + 4 * F.mse_loss(model.decode_latents(quantised), batch)  # x4: pixels in [-1, 1]

    return fit(model, optimiser, loss_of, num_steps, 0.995, progress)


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
        target, label = tokens[index], without_some(labels[index], label_dropout, model.num_classes)
        ratio = torch.cos(torch.rand(batch_size, 1) * torch.pi / 2)
        rank = torch.rand(target.shape).argsort(1).argsort(1)
        masked = rank < (ratio * target.shape[1]).ceil().clamp(min=1)
        logits, _ = model(target.masked_fill(masked, model.codebook_size), label)
        return F.cross_entropy(logits[masked], target[masked])

    return fit(model, optimiser, loss_of, num_steps, 0.999, progress, max_gradient=1.0)


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
        batch = augment(images[index])
        features = model.features(batch + 0.05 * torch.randn(batch.shape))
        loss = F.cross_entropy(model.head(features), labels[index], label_smoothing=0.05)
        return loss + 400 * F.mse_loss(decoder(features), batch.flatten(1))

    return fit(model, optimiser, loss_of, num_steps, 0.995, progress)


def train_discriminator(
    backbone: str, seed: int = 0, num_steps: int = 1500, progress: Progress | None = None
) -> DigitsDiscriminator:
    """Returns a discriminator of real digits and MaskGIT's under random schedules, for the frozen adversarial reward.

    The schedules are uniform over the action box, so that it has seen what a policy may try. Noise, blank images and
    digits of another label are among the fakes as well.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = DigitsDiscriminator()
    reward = AdversarialReward(model)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-4, betas=(0.5, 0.999))
    fakes, labels = random_schedules(backbone, generator, num_images=8192)
    for step in range(num_steps):
        index = torch.randint(len(fakes), (256,), generator=generator)
        label = labels[index]
        fake, real = fakes[index], DIGITS.real_like(label, generator)
        # Schedules draw neither of these, but a judge of digits must know them: an eighth each.
        fake[:32] = torch.rand(fake[:32].shape, generator=generator)
        fake[32:64] = 0
        other = torch.randint(1, 10, (32,), generator=generator)
        fake[64:96] = DIGITS.real_like((label[64:96] + other) % 10, generator)
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


State = dict[str, Tensor]
Recipe = Callable[[Path, Progress | None], State | None]
"""Gives a part's tensors, or None where it wrote the part's folder itself."""


def _train_set() -> tuple[Tensor, Tensor]:
    images, labels = digits()
    train, _ = split()
    return images[train], labels[train]


def _weights(train: Callable[..., nn.Module], *needs: str) -> Recipe:
    """Returns the recipe that calls train(*needed networks, progress=...)."""
    return lambda out, progress: train(
        *(load_part(part, str(out)) for part in needs), progress=progress
    ).state_dict()


@dataclasses.dataclass(frozen=True)
class Part:
    """How a part of the tier is made.

    Attributes:
        what: it is, for the model card.
        recipe: gives its tensors.
        num_threads: of the CPU it is trained with, since the order of its sums, and so its last digits, depend on them.
    """

    what: str
    recipe: Recipe
    num_threads: int = 1


def _classifier(width: int, seed: int) -> Recipe:
    return lambda _, progress: train_classifier(
        _train_set(), width=width, seed=seed, progress=progress
    ).state_dict()


PARTS: dict[str, Part] = {
    "vq": Part(
        "VQ tokenizer, 8x8 -> 4x4 tokens, of MaskGIT, LlamaGen and VQGAN", _weights(train_tokenizer), 2
    ),
    "judge": Part("classifier, its 64 features give the held-out metrics", _classifier(width=32, seed=1)),
    "reward_features": Part("a smaller one, for rewards", _classifier(width=24, seed=2)),
    "reference": Part(
        "the 1,797 real images in the features of `judge`: mean, standard deviation, covariance",
        lambda out, _: reference_statistics(load_part("judge", str(out)), digits()[0]),
    ),
    "maskgit": Part("class-conditional MaskGIT", _weights(train_maskgit, "vq"), 2),
    "discriminator": Part(
        'for `reward="adversarial"`: real digits against MaskGIT\'s under random schedules',
        lambda out, progress: train_discriminator(str(out), progress=progress).state_dict(),
        2,
    ),
    "clip": Part(
        'CLIP of images and prompts such as "a handwritten three", as transformers saves it',
        lambda out, progress: train_clip(out, _train_set(), progress=progress),
    ),
    "hpsv2": Part(
        "preference scorer of pairs, as open_clip and HPSv2 save it",
        lambda out, progress: train_hpsv2(out, _train_set(), progress=progress),
    ),
    "msvq": Part("multi-scale residual VQ, token maps of 1, 2, 3 and 4 a side, of VAR", _weights(train_msvq)),
    "var": Part("class-conditional VAR", _weights(train_var, "msvq")),
    "llamagen": Part("class-conditional LlamaGen, raster order", _weights(train_llamagen, "vq")),
    "vqgan": Part("class-conditional transformer of VQGAN, raster order", _weights(train_vqgan, "vq")),
    "dit": Part("class-conditional DiT on the pixels, noise prediction on the VP path", _weights(train_dit)),
    "sit": Part("class-conditional SiT on the pixels, velocity on the linear path", _weights(train_sit)),
}
"""What `build` makes, in order: later parts need earlier ones."""

GENERATORS = (
    Generator("MaskGIT", "maskgit", "AdaGen/MaskGIT-v0", (4, 8, 16)),
    Generator("VAR", "var", "AdaGen/VAR-v0"),
    Generator("LlamaGen", "llamagen", "AdaGen/LlamaGen-v0"),
    Generator("VQGAN", "vqgan", "AdaGen/VQGAN-v0"),
    Generator("DiT", "dit", "AdaGen/DiT-v0", (4, 8, 16)),
    Generator("SiT", "sit", "AdaGen/SiT-v0", (4, 8, 16)),
)


def build(
    out: Path, only: str | None = None, progress: Callable[[str, int, int, float], None] | None = None
) -> None:
    """Trains the tier's networks and writes them, with their manifest and model card, into a folder.

    Args:
        out: the folder; usable as `backbone=str(out)`.
        only: one of `PARTS`, to rebuild that part alone in a folder that holds the others.
        progress: called as progress(part, step, num_steps, loss).

    Raises:
        ValueError: if there is no such part.
        ImportError: if the libraries of the scorers are missing.
    """
    if only is not None and only not in PARTS:
        raise ValueError(f"--only must be one of {', '.join(PARTS)}, got {only!r}")
    parts = list(PARTS) if only is None else [only]
    if set(parts) & set(DIGITS.folder_parts):
        check_scorers()  # before anything is trained
    out.mkdir(parents=True, exist_ok=True)
    times = out / "build.json"
    seconds = read_json(times) if times.exists() else {}
    for part in parts:
        started = time.monotonic()
        report = None if progress is None else lambda s, n, loss, part=part: progress(part, s, n, loss)
        with _threads(PARTS[part].num_threads):
            tensors = PARTS[part].recipe(out, report)
        if tensors is not None:
            save_tensors(tensors, out / f"{part}.safetensors")
        write_manifest(out)
        seconds[part] = round(time.monotonic() - started)
        write_text(times, json.dumps(seconds, indent=2) + "\n")
    contents = Contents(CARD, {name: part.what for name, part in PARTS.items()}, GENERATORS, split()[1])
    write_card(out, contents, seconds)


@contextlib.contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CARD = """# The digits tier

Networks trained on the 1,797 handwritten 8x8 digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak 1998, CC BY 4.0). The weights are MIT, like the code. They are for research on schedules: the
digits are tiny, and the generators have seen every one of them. Labels are dropped from 10 % of the generators'
training images, for classifier-free guidance.

Made by the recipes of `genenv zoo build digits --out DIR` (fixed seeds; training time on 2 CPU cores: {times}).
Every number below is measured when the card is written; `sha256` of each file: `manifest.json`.

| file | what | measured |
|---|---|---|
{files}

Held-out metrics: features standardised over the real images; FID, density and coverage (k = 5) by genenv, KID
(20 subsets of 1,000), precision and recall (k = 3) by torch-fidelity. 2,000 images, 200 a class, mean ± standard
deviation over {seeds} disjoint sets of evaluation seeds.

| images | {header} |
|---|{rule}|
{table}

The scorers were tested on corruptions that take half of each pixel (noise, blur, fading, dropped pixels, another
digit), and on MaskGIT's images under random schedules.

The floor of FID is what real images score among themselves: one random half against the other,
{halves:.2f} ± {spread:.2f} (10 splits of 898 and 899 images; the value falls with the number of images).

Of the shipped weights: at 16 steps (VAR, LlamaGen and VQGAN have their own number) the published schedule stays
within twice that floor for VAR, LlamaGen and VQGAN, and for DiT and SiT with guidance off: their guidance was published
for ImageNet, and costs diversity here. VQGAN published none; ours is small, and costs some all the same. MaskGIT
does not come as near with either. Its confidence picks typical digits, the more so the more
steps it takes: recall falls. Neither tokenizer nor network is the limit, for LlamaGen's FID is low on the same tokens,
and a searched or learned schedule brings MaskGIT's at 4 steps down to about the floor (README, "Results").
"""
