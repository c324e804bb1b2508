"""The diffusion transformer DiT (Peebles and Xie 2023), which SiT (Ma et al. 2024) uses unchanged.

Parameter names and structure are those of the released checkpoints, so that the same class carries the digits
generators and the ImageNet ones. The DiT of diffusers would carry the latter, but not hand out the features that a
policy sees.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.models.transformer import MLP, Attention, StepEmbedding, modulation
from genenv.solvers import LinearPath, NoisePath, VPLinear, per_image


def position_embedding(grid_size: int, embed_dim: int) -> Tensor:
    """Returns (1, L, D) sinusoids of a square grid: half the channels tell the column, half the row."""
    quarter = embed_dim // 4
    frequencies = 10000 ** -(torch.arange(quarter) / quarter)
    angles = torch.arange(grid_size)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=-1)  # (grid_size, D / 2)
    columns, rows = line.repeat(grid_size, 1), line.repeat_interleave(grid_size, dim=0)
    return torch.cat([columns, rows], dim=-1)[None]


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Returns x (N, L, D), normalised, scaled by 1 + scale and shifted, both (N, 1, D)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class PatchEmbedding(nn.Module):
    """Cuts latents into patches and embeds them."""

    def __init__(self, in_channels: int, patch_size: int, embed_dim: int):
        super().__init__()
        self.proj = nn.Conv2d(in_channels, embed_dim, patch_size, stride=patch_size)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, L, D) of latents (N, C, h, w)."""
        return self.proj(x).flatten(2).transpose(1, 2)


class LabelEmbedding(nn.Module):
    """A vector for each class, and a last one for none."""

    def __init__(self, num_classes: int, embed_dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, embed_dim)

    def forward(self, labels: Tensor) -> Tensor:
        """Returns (N, D) of labels (N,)."""
        return self.embedding_table(labels)


class Block(nn.Module):
    """A transformer block whose norms and branches follow the condition (adaLN-Zero)."""

    def __init__(self, embed_dim: int, num_heads: int, mlp_ratio: float, dropout: float):
        super().__init__()
        self.attn = Attention(embed_dim, num_heads, qkv_bias=True)
        self.mlp = MLP(embed_dim, int(embed_dim * mlp_ratio), approximate="tanh")
        self.adaLN_modulation = modulation(embed_dim, 6, embed_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns (N, L, D) of x (N, L, D) under the condition (N, D)."""
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = (
            self.adaLN_modulation(condition)[:, None].chunk(6, dim=-1)
        )  # fmt: skip
        x = x + gate_1 * self.dropout(self.attn(modulate(x, shift_1, scale_1)))
        return x + gate_2 * self.dropout(self.mlp(modulate(x, shift_2, scale_2)))


class FinalLayer(nn.Module):
    """Tokens to the values of their patches, zero before training."""

    def __init__(self, embed_dim: int, num_values: int):
        super().__init__()
        self.linear = nn.Linear(embed_dim, num_values)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.adaLN_modulation = modulation(embed_dim, 2, embed_dim)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns (N, L, num_values) of x (N, L, D) under the condition (N, D)."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


class DiT(nn.Module):
    """Predicts the noise (DiT) or the velocity (SiT) in noisy latents, given their time and class.

    Args:
        input_size: side of the latents.
        patch_size: side of a patch; L = (input_size / patch_size) ** 2 tokens.
        in_channels: channels of the latents.
        embed_dim: width D.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of the MLP over D.
        num_classes: class labels; id `num_classes` is the null (unconditional) class.
        learn_sigma: the checkpoint also predicts a variance, which is not used here.
        dropout: rate during training; the frozen generator runs in eval mode.
    """

    def __init__(
        self,
        input_size: int,
        patch_size: int,
        in_channels: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_classes: int = 1000,
        learn_sigma: bool = True,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.patch_size, self.grid_size = patch_size, input_size // patch_size
        self.latent_shape = (in_channels, input_size, input_size)
        self.num_classes, self.embed_dim = num_classes, embed_dim
        self.x_embedder = PatchEmbedding(in_channels, patch_size, embed_dim)
        self.t_embedder = StepEmbedding(embed_dim)
        self.y_embedder = LabelEmbedding(num_classes, embed_dim)
        self.pos_embed = nn.Parameter(position_embedding(self.grid_size, embed_dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, dropout) for _ in range(depth))
        num_outputs = in_channels * (2 if learn_sigma else 1)
        self.final_layer = FinalLayer(embed_dim, patch_size**2 * num_outputs)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the prediction (N, C, h, w) and the features (N, L, D) before the final layer.

        Args:
            x: (N, C, h, w) latents.
            t: (N,) times: 0 ... 1000 for DiT, 0 ... 1 for SiT.
            labels: (N,) int64; `num_classes` for the unconditional prediction.
        """
        dtype = self.pos_embed.dtype
        features = self.x_embedder(x.to(dtype)) + self.pos_embed
        condition = self.t_embedder(t) + self.y_embedder(labels)
        for block in self.blocks:
            features = block(features, condition)
        side, patch = self.grid_size, self.patch_size
        values = self.final_layer(features, condition).view(len(x), side, side, patch, patch, -1)
        output = values.permute(0, 5, 1, 3, 2, 4).reshape(len(x), -1, side * patch, side * patch)
        return output[:, : x.shape[1]], features


def dit_xl_2() -> DiT:
    """Returns DiT-XL/2 and SiT-XL/2 at 256 pixels."""
    return DiT(input_size=32, patch_size=2, in_channels=4, embed_dim=1152, depth=28, num_heads=16)


class PixelDiT(DiT):
    """A DiT that corrects the best linear guess from each pixel alone (Karras et al. 2022, sec. 5).

    With the output y = skip(t) x + scale(t) F(x), the network F is asked for numbers of unit variance at every time,
    and need not carry the noise through its layers. Its output is that of any other DiT.

    Args:
        path: of the latents; it says what the output is.
        time_scale: the network's times over the path's.
        data_std: root mean square of the data.
        **kwargs: of `DiT`.
    """

    def __init__(self, path: NoisePath, time_scale: float, data_std: float, **kwargs: Any):
        super().__init__(**kwargs)
        self.path, self.time_scale, self.data_std = path, time_scale, data_std

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """Returns skip and scale (N,) at times (N,) of the path: the regression of y on x, and what it leaves."""
        alpha, sigma = self.path.alpha(time), self.path.sigma(time)
        one, zero = torch.ones_like(time), torch.zeros_like(time)
        of_data, of_noise = self.path.output(one, zero), self.path.output(zero, one)
        variance = alpha**2 * self.data_std**2 + sigma**2
        skip = (of_data * alpha * self.data_std**2 + of_noise * sigma) / variance
        return skip, self.data_std * (of_data * sigma - of_noise * alpha) / variance.sqrt()

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the prediction (N, C, h, w) float32 and the features (N, L, D) before the final layer."""
        correction, features = super().forward(x, t, labels)
        skip, scale = self.coefficients(t.double() / self.time_scale)
        return per_image(skip, x) * x + per_image(scale, x) * correction.float(), features


def dit_digits(dropout: float = 0.0) -> PixelDiT:
    """Returns the 0.7 M parameter noise predictor of 8x8 grey pixels."""
    return _pixel_dit(VPLinear(), 1000.0, dropout)


def sit_digits(dropout: float = 0.0) -> PixelDiT:
    """Returns the 0.7 M parameter velocity predictor of 8x8 grey pixels."""
    return _pixel_dit(LinearPath(), 1.0, dropout)


def _pixel_dit(path: NoisePath, time_scale: float, dropout: float) -> PixelDiT:
    return PixelDiT(
        path,
        time_scale,
        data_std=0.85,
        input_size=8,
        patch_size=2,
        in_channels=1,
        embed_dim=96,
        depth=4,
        num_heads=4,
        num_classes=10,
        learn_sigma=False,
        dropout=dropout,
    )
