"""One image of an episode as a picture: the partial result beside the places that are still open."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FRAME_SIZE = 256
OPEN = torch.tensor([0.96, 0.75, 0.25])
DECIDED = torch.tensor([0.15, 0.17, 0.21])


def draw_frame(image: Tensor, undecided: Tensor) -> np.ndarray:
    """Returns (256, 516, 3) uint8: the image (C, H, W) in [0, 1], and the open places (h, w) in [0, 1] in amber."""
    rgb = image.expand(3, -1, -1)
    mask = DECIDED[:, None, None] + (OPEN - DECIDED)[:, None, None] * undecided
    gap = torch.ones(3, FRAME_SIZE, 4)
    frame = torch.cat([_enlarge(rgb), gap, _enlarge(mask)], dim=2)
    return (frame.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()


def _enlarge(image: Tensor) -> Tensor:
    return F.interpolate(image[None], size=(FRAME_SIZE, FRAME_SIZE), mode="nearest")[0]


def show_frames(frames: tuple[np.ndarray, ...]) -> None:
    """Shows frames (H, W, 3) below each other in a notebook, or in a window that stays up to date."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise ImportError("render_mode='human' needs matplotlib: pip install 'genenv[viz]'") from None

    picture = np.concatenate(frames[:4])
    plt.ion()
    figure = plt.figure("genenv", figsize=(6, 3 * min(4, len(frames))))
    figure.clear()
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(picture)
    axes.axis("off")
    figure.canvas.draw_idle()
    if "inline" in plt.get_backend():
        from IPython.display import clear_output, display

        clear_output(wait=True)
        display(figure)
    elif "agg" != plt.get_backend().lower():
        plt.pause(0.05)
