"""One image of an episode as a picture: the partial result beside the places that are still open."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FRAME_SIZE = 256
GAP = 4
MAX_SHOWN = 4
PAUSE = 0.25
"""Seconds a frame stays up in a window: the environments' `render_fps` of 4."""
OPEN = torch.tensor([0.96, 0.75, 0.25])
DECIDED = torch.tensor([0.15, 0.17, 0.21])


def draw_frame(image: Tensor, undecided: Tensor) -> np.ndarray:
    """Returns the image and, to its right, its open places in amber, (H', 2 W' + 4, 3) uint8.

    Args:
        image: (C, H, W) in [0, 1] with 1 or 3 channels, enlarged by the largest whole factor with which it stays
            within 256 pixels: crisp, with its own proportions.
        undecided: (h, w) in [0, 1], how open each place is.
    """
    factor = max(1, FRAME_SIZE // max(image.shape[1:]))
    size = (image.shape[1] * factor, image.shape[2] * factor)
    rgb = F.interpolate(image.expand(3, -1, -1)[None].float(), size=size, mode="nearest")[0]
    mask = F.interpolate(undecided[None, None].float(), size=size, mode="nearest")[0]
    mask = DECIDED[:, None, None] + (OPEN - DECIDED)[:, None, None] * mask
    frame = torch.cat([rgb, torch.ones(3, size[0], GAP), mask], dim=2)
    return (frame.nan_to_num().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def show_frames(frames: tuple[np.ndarray, ...]) -> None:
    """Shows the first four frames (H', W', 3) below each other, in a notebook or in a window that stays up to date.

    Without a display there is nothing to show them in, and nothing happens: use `render_mode="rgb_array"` there.
    """
    try:
        import matplotlib.pyplot as plt
        from PIL import Image
    except ImportError:
        raise ImportError("render_mode='human' needs matplotlib: pip install 'genenv[viz]'") from None

    picture = np.concatenate(frames[:MAX_SHOWN])
    backend = plt.get_backend().lower()
    if "inline" in backend:
        from IPython.display import clear_output, display  # pyright: ignore[reportMissingImports]

        clear_output(wait=True)
        display(Image.fromarray(picture))
    elif backend != "agg":
        figure = plt.figure("genenv", figsize=(6, 6 * picture.shape[0] / picture.shape[1]))
        figure.clear()
        axes = figure.add_axes((0, 0, 1, 1))
        axes.imshow(picture)
        axes.axis("off")
        plt.pause(PAUSE)
