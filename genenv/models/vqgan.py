"""The tokenizer of VQGAN (Esser et al. 2021, sec. 3.1), under its released parameter names."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from genenv.models.convolutions import AttentionBlock, Decoder, Encoder, VQAutoencoder
from genenv.models.maskgit_vqgan import Codebook


class VQGAN(VQAutoencoder):
    """VQGAN's autoencoder.

    Args:
        ch: channels of the first level.
        ch_mult: width of each level over `ch`, the first one 1; the grid is `downsampling` = 2 ** (levels - 1) times
            smaller than the image, and there is attention at its resolution alone.
        num_res_blocks: residual blocks of an encoder level; a decoder's has one more.
        z_channels: channels between the convolutions and the codebook.
        codebook_size: entries V.
        codebook_dim: dimension of an entry.
    """

    def __init__(
        self,
        ch: int = 128,
        ch_mult: Sequence[int] = (1, 1, 2, 2, 4),
        num_res_blocks: int = 2,
        z_channels: int = 256,
        codebook_size: int = 16384,
        codebook_dim: int = 256,
    ):
        widths = [ch * m for m in ch_mult]
        super().__init__(
            Encoder(widths, num_res_blocks, z_channels, AttentionBlock),
            Decoder(widths, num_res_blocks + 1, z_channels, attention=AttentionBlock),
            Codebook(codebook_size, codebook_dim),
            z_channels,
            codebook_dim,
            2 ** (len(ch_mult) - 1),
        )
        self.codebook_size = codebook_size
        self.register_load_state_dict_pre_hook(_forget_loss)


def _forget_loss(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_) -> None:
    """Drops the judges of the training, perceptual and adversarial, that released files carry."""
    for name in [name for name in state_dict if name.startswith(f"{prefix}loss.")]:
        del state_dict[name]
