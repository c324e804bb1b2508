"""Trains the digits tier's VAR and its multi-scale tokenizer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.data import digits
from genenv.models.digits_msvq import DigitsMSVQ
from genenv.models.var import VARTransformer, var_digits
from genenv.zoo.training import CodebookAverage, Progress, fit, without_some


def train_msvq(
    seed: int = 0, num_steps: int = 4000, batch_size: int = 128, progress: Progress | None = None
) -> DigitsMSVQ:
    """Returns a multi-scale tokenizer trained on the squared error of the pixels.

    Images are decoded after a random scale as well as after the last one, so that coarse scales carry what they can:
    a transformer draws the tokens of a scale independently of each other.
    The codebook that all scales share follows its codes as moving averages (van den Oord et al. 2017, appendix A.1)
    from a warm start on the unquantised autoencoder; entries that nothing uses are moved onto vectors of the batch.
    """
    torch.manual_seed(seed)
    images, _ = digits()
    model = DigitsMSVQ()
    entries = model.quantize.embedding.weight.requires_grad_(False)
    codebook = CodebookAverage(entries)
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(learned, lr=2e-3, weight_decay=1e-4)
    num_scales = len(model.quantize.patch_nums)
    warm_start, last_revival = num_steps // 10, num_steps * 3 // 4

    def error(latents: Tensor, batch: Tensor) -> Tensor:
        return 4 * F.mse_loss(model.decode_unclamped(latents), batch)  # x4: pixels in [-1, 1]

    def loss_of(step: int) -> Tensor:
        batch = images[torch.randint(len(images), (batch_size,))]
        latents = model.latents(batch)
        if step < warm_start:
            return error(latents, batch)
        if step == warm_start:
            means = [model.quantize.shrink(latents.detach(), i) for i in range(num_scales)]
            codebook.start(torch.cat(means, dim=1).flatten(0, 1))
        accumulated, commitment = torch.zeros_like(latents), torch.zeros(())
        maps, inputs, codes = [], [], []
        for scale in range(num_scales):
            vectors = model.quantize.shrink(latents - accumulated, scale)
            inputs.append(vectors.detach())
            codes.append(model.quantize.nearest(inputs[-1]))
            chosen = entries[codes[-1]]
            commitment = commitment + F.mse_loss(vectors, chosen) / num_scales
            # Straight through: the gradient of the entries is the vectors'.
            accumulated = accumulated + model.quantize.expand(vectors + (chosen - vectors).detach(), scale)
            maps.append(accumulated)
        flat = torch.cat(inputs, dim=1).flatten(0, 1)
        codebook.update(
            flat, torch.cat(codes, dim=1).flatten(), revive=step < last_revival and step % 20 == 0
        )
        coarse = maps[int(torch.randint(num_scales - 1, ()))]
        return error(accumulated, batch) + 0.2 * error(coarse, batch) + 0.25 * commitment

    return fit(model, optimiser, loss_of, num_steps, 0.995, progress)


def train_var(
    tokenizer: DigitsMSVQ,
    seed: int = 0,
    num_steps: int = 3000,
    batch_size: int = 128,
    label_dropout: float = 0.1,
    progress: Progress | None = None,
) -> VARTransformer:
    """Returns a class-conditional VAR (Tian et al. 2024, sec. 3.1), trained on all scales at once.

    1,797 images are soon learnt by heart: dropout, and a tenth of the tokens read replaced by random ones, hold against
    it. A share `label_dropout` of the labels is replaced by the null class, for classifier-free guidance.
    """
    torch.manual_seed(seed)
    images, labels = digits()
    latents = tokenizer.latents(images)
    model = var_digits(dropout=0.1)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.96), weight_decay=0.05)

    def disturb(tokens: Tensor) -> Tensor:
        return torch.where(
            torch.rand(tokens.shape) < 0.1, torch.randint_like(tokens, model.vocab_size), tokens
        )

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(images), (batch_size,))
        label = without_some(labels[index], label_dropout, model.num_classes)
        with torch.no_grad():
            tokens, accumulated = zip(*tokenizer.quantize.quantise(latents[index], disturb), strict=True)
            maps, target = tokenizer.quantize.maps(accumulated), torch.cat(tokens, dim=1)
        logits, _ = model(maps, label)
        return F.cross_entropy(logits.flatten(0, 1), target.flatten())

    return fit(model, optimiser, loss_of, num_steps, 0.999, progress, max_gradient=1.0)
