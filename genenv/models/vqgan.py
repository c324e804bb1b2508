"""The tokenizer of VQGAN (Esser et al. 2021, sec. 3.1), under its released parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genenv.models.convolutions import AttentionBlock, Decoder, Encoder
from genenv.models.maskgit_vqgan import Codebook


class VQGAN(nn.Module):
    """Images (N, 3, H, W) in [0, 1] to tokens and back.

    Args:
        ch: channels of the first level.
        ch_mult: width of each level over `ch`, the first one 1; the grid is `downsampling` = 2 ** (levels - 1) times
            smaller than the image, and there is attention at its resolution alone.
        num_res_blocks: residual blocks of an encoder level; a decoder's has one more.
        z_channels: channels between the convolutions and the codebook.
        codebook_size: entries V.
        codebook_dim: dimension of an entry.
    """

    image_channels = 3

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        codebook_size: int = 16384,
        codebook_dim: int = 256,
    ):
        super().__init__()
        self.downsampling = 2 ** (len(ch_mult) - 1)
        widths = [ch * m for m in ch_mult]
        self.encoder = Encoder(widths, num_res_blocks, z_channels, AttentionBlock)
        self.decoder = Decoder(widths, num_res_blocks + 1, z_channels, attention=AttentionBlock)
        self.quantize = Codebook(codebook_size, codebook_dim)
        self.quant_conv = nn.Conv2d(z_channels, codebook_dim, 1)
        self.post_quant_conv = nn.Conv2d(codebook_dim, z_channels, 1)
        self.register_load_state_dict_pre_hook(_forget_loss)

    def encode(self, images: Tensor) -> Tensor:
        """Returns tokens (N, h, w) int64 of images (N, 3, H, W) in [0, 1]."""
        return self.quantize.nearest(self.quant_conv(self.encoder(2 * images - 1)))

    def decode_unclamped(self, tokens: Tensor) -> Tensor:
        """Returns the decoder's output (N, 3, H, W), nominally in [-1, 1], for tokens (N, h, w)."""
        return self.decoder(self.post_quant_conv(self.quantize(tokens)))

    def decode(self, tokens: Tensor) -> Tensor:
        """Returns images (N, 3, H, W) in [0, 1] of tokens (N, h, w)."""
        return ((self.decode_unclamped(tokens) + 1) / 2).clamp(0, 1)


def _forget_loss(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Drops the judges of the training, perceptual and adversarial, that released files carry."""
    for name in [name for name in state_dict if name.startswith(f"{prefix}loss.")]:
        del state_dict[name]
