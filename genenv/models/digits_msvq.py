"""The multi-scale VQ tokenizer of the digits tier: 8x8 grey images <-> token maps of 1, 2, 3 and 4 a side."""

from __future__ import annotations

from torch import Tensor, nn

from genenv.models.digits_vq import DigitsVQ
from genenv.models.var_vqvae import MultiScaleQuantiser


class DigitsMSVQ(nn.Module):
    """Encodes images to the tokens of all scales and back, within the autoencoder of `DigitsVQ`.

    Args:
        width: channels of the convolutions.
        z_channels: dimension C of a codebook entry.
        vocab_size: codebook entries V.
    """

    image_shape = (1, 8, 8)

    def __init__(self, width: int = 32, z_channels: int = 16, vocab_size: int = 128):
        super().__init__()
        autoencoder = DigitsVQ(width, z_channels)
        self.encoder, self.decoder = autoencoder.encoder, autoencoder.decoder
        self.quantize = MultiScaleQuantiser((1, 2, 3, 4), vocab_size, z_channels)
        self.codebook_size = vocab_size

    def latents(self, images: Tensor) -> Tensor:
        """Returns the latents before quantisation (N, C, 4, 4) of images (N, 1, 8, 8) in [0, 1]."""
        return self.encoder(2 * images - 1)

    def encode(self, images: Tensor) -> Tensor:
        """Returns the tokens of all scales (N, 30) int64, coarse to fine, of images (N, 1, 8, 8) in [0, 1]."""
        return self.quantize.encode(self.latents(images))

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Returns unclamped images (N, 1, 8, 8) of latents (N, C, 4, 4)."""
        return (self.decoder(latents) + 1) / 2

    def decode(self, latents: Tensor) -> Tensor:
        """Returns images (N, 1, 8, 8) in [0, 1] of an accumulated token map (N, C, 4, 4)."""
        return self.decode_unclamped(latents).clamp(0, 1)

    def reconstruct(self, images: Tensor) -> Tensor:
        """Returns images (N, 1, 8, 8) as their tokens give them back."""
        *_, latents = self.quantize.accumulate(self.encode(images))
        return self.decode(latents)
