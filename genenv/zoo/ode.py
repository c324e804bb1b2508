"""Trains the digits tier's diffusion and flow-matching generators, on the pixels themselves."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.data import digits
from genenv.models.dit import PixelDiT, dit_digits, sit_digits
from genenv.solvers import per_image
from genenv.zoo.training import Progress, fit, without_some


def train_dit(
    seed: int = 0, num_steps: int = 4000, batch_size: int = 128, progress: Progress | None = None
) -> PixelDiT:
    """Returns a class-conditional DiT (Peebles and Xie 2023), which says the noise as the released one does."""
    torch.manual_seed(seed)
    return _train(dit_digits(dropout=0.1), num_steps, batch_size, progress)


def train_sit(
    seed: int = 0, num_steps: int = 4000, batch_size: int = 128, progress: Progress | None = None
) -> PixelDiT:
    """Returns a class-conditional SiT (Ma et al. 2024), which says the velocity as the released one does."""
    torch.manual_seed(seed)
    return _train(sit_digits(dropout=0.1), num_steps, batch_size, progress)


def _train(
    model: PixelDiT,
    num_steps: int,
    batch_size: int,
    progress: Progress | None,
    label_dropout: float = 0.1,
) -> PixelDiT:
    """Returns the network trained at times spread evenly over the path; what it has to correct weighs the same at each.

    1,797 images are soon learnt by heart: dropout holds against it. A share `label_dropout` of the labels is replaced
    by the null class, for classifier-free guidance.
    """
    images, labels = digits()
    path = model.path
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.99), weight_decay=0.03)

    def loss_of(step: int) -> Tensor:
        index = torch.randint(len(images), (batch_size,))
        data, label = 2 * images[index] - 1, without_some(labels[index], label_dropout, model.num_classes)
        # One time from each of the batch's equal parts of the path: the loss varies less.
        time = (torch.arange(batch_size) + torch.rand(batch_size)) / batch_size
        noise = torch.randn_like(data)
        latents = per_image(path.alpha(time), data) * data + per_image(path.sigma(time), data) * noise
        output, _ = model(latents, model.time_scale * time, label)
        _, scale = model.coefficients(time)
        return F.mse_loss(output / per_image(scale, data), path.output(data, noise) / per_image(scale, data))

    return fit(model, optimiser, loss_of, num_steps, 0.999, progress, max_gradient=1.0)
