"""The KL autoencoder of latent diffusion (Rombach et al. 2022): 256-pixel images <-> 4 x 32 x 32 latents.

The network is that of diffusers; a state dict may carry the names of `autoencoder_kl_ema`, the released file.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

LATENT_SCALE = 0.18215
"""Latents of the generators are the encoder's times this."""

RENAMED = (
    (r"\.block\.(\d+)\.", r".resnets.\1."),
    (r"\.downsample\.", ".downsamplers.0."),
    (r"\.upsample\.", ".upsamplers.0."),
    (r"\.down\.(\d+)\.", r".down_blocks.\1."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.attn_1\.norm\.", ".attn_1.group_norm."),
    (r"\.attn_1\.([qkv])\.", r".attn_1.to_\1."),
    (r"\.attn_1\.proj_out\.", ".attn_1.to_out.0."),
    (r"\.mid\.attn_1\.", ".mid_block.attentions.0."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)
"""Parts of released names -> diffusers' names, one after the other."""


class AutoencoderKL(nn.Module):
    """Decodes the latents of DiT and SiT.

    Args:
        ch: width of the first level.
        ch_mult: widths of the levels over `ch`; resolution halves between them.
        num_res_blocks: residual blocks of an encoder level; a decoder's has one more.
        z_channels: channels of the latents.

    Raises:
        ImportError: if diffusers is not installed.
    """

    image_channels = 3

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 2, 4, 4),
        num_res_blocks: int = 2,
        z_channels: int = 4,
    ):
        super().__init__()
        try:
            diffusers: Any = importlib.import_module("diffusers.models.autoencoders.autoencoder_kl")
        except ImportError:
            raise ImportError("the KL autoencoder needs diffusers: pip install 'genenv[diffusers]'") from None
        self.num_levels = len(ch_mult)
        self.downsampling = 2 ** (self.num_levels - 1)
        self.network = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * self.num_levels,
            up_block_types=("UpDecoderBlock2D",) * self.num_levels,
            block_out_channels=tuple(ch * multiple for multiple in ch_mult),
            layers_per_block=num_res_blocks,
            latent_channels=z_channels,
        )
        self.register_load_state_dict_pre_hook(_rename)

    def moments(self, images: Tensor) -> Tensor:
        """Returns mean and log-variance (N, 2 z, h, w) of the unscaled latents of images (N, 3, H, W) in [0, 1]."""
        return self.network.encode(2 * images - 1).latent_dist.parameters

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Returns images (N, 3, H, W), nominally in [-1, 1], of scaled latents (N, z, h, w)."""
        return self.network.decode(latents / LATENT_SCALE).sample

    def decode(self, latents: Tensor) -> Tensor:
        """Returns images (N, 3, H, W) in [0, 1] of scaled latents (N, z, h, w)."""
        return ((self.decode_unclamped(latents) + 1) / 2).clamp(0, 1)


def _rename(module: AutoencoderKL, state_dict: dict[str, Tensor], *_: Any) -> None:
    """Gives a state dict under the released names, before it is loaded, the names and shapes of diffusers."""
    for name in [name for name in state_dict if not name.startswith("network.")]:
        value, new = state_dict.pop(name), name
        # The released decoder counts its levels from the image, diffusers' from the latents.
        new = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{module.num_levels - 1 - int(m[1])}.", new)
        for pattern, replacement in RENAMED:
            new = re.sub(pattern, replacement, new)
        if ".attn_1." in name and value.ndim == 4:  # a 1x1 convolution there, a linear layer here
            value = value[:, :, 0, 0]
        state_dict[f"network.{new}"] = value
