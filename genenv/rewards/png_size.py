"""How large an image is as a PNG file: a reward without a gradient (as DDPO's compressibility, Black et al. 2024)."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from genenv.protocols import Context


class PNGSize:
    """Pays the kilobytes of an image's PNG file, of 8 bits a channel; a weight of -1 asks for small files.

    It knows nothing of what the image shows, so that maximising it shows how a reward is exploited.
    """

    name = "png_size"

    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,) of images (N, C, H, W) in [0, 1], C being 1 (grey) or 3."""
        pixels = (255 * images.clamp(0, 1)).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return torch.tensor([_size(image) for image in pixels], device=images.device) / 1000


def _size(pixels) -> int:
    """Returns the bytes of an image (H, W, C)."""
    from PIL import Image

    with io.BytesIO() as file:
        Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(file, "PNG")
        return file.tell()


def make(backbone: str, device: str) -> PNGSize:
    """Returns the reward, the same for every backbone.

    Raises:
        ImportError: without Pillow.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise ImportError("the reward 'png_size' needs Pillow: pip install 'genenv[viz]'") from None
    return PNGSize()
