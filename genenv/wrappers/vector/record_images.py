"""Keeps the finished images, batched."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor

from genenv.wrappers.vector.base import GenVectorWrapper, finished


class RecordImages(GenVectorWrapper):
    """Keeps the images that the episodes finish, in any autoreset mode, and writes them as PNG files if asked to.

    Args:
        env: a GenVectorEnv or wrappers around one.
        folder: where `episode-000002-image-0013-context-7.png` of the third episode's image 13 goes, a grey or coloured
            picture of the image's own size; None writes nothing.
        episode_trigger: episode -> whether to record it, counted from 0; None records all.
        buffer_length: images that are kept at hand, the newest; 0 for none.

    Attributes:
        images: float32 (C, H, W) in [0, 1] on the CPU, the newest last.
        contexts: what each of them was asked to show.
        episode_id: the episode at hand, counted from 0.

    Raises:
        ValueError: if the buffer's length is negative.
        ImportError: if files are to be written, and Pillow is missing.
    """

    def __init__(
        self,
        env: VectorEnv,
        folder: str | Path | None = None,
        episode_trigger: Callable[[int], bool] | None = None,
        buffer_length: int = 256,
    ):
        super().__init__(env)
        if buffer_length < 0:
            raise ValueError(f"buffer_length must be at least 0, got {buffer_length}")
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            _pillow()
            self.folder.mkdir(parents=True, exist_ok=True)
        self.episode_trigger = episode_trigger
        self.images: deque[Tensor] = deque(maxlen=buffer_length)
        self.contexts: deque[int] = deque(maxlen=buffer_length)
        self.episode_id = 0

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict]:
        """Takes a step; the one that finishes the images keeps them."""
        result = self.env.step(actions)
        final = finished(result[-1])
        if final is not None:
            if self.episode_trigger is None or self.episode_trigger(self.episode_id):
                images = torch.as_tensor(final["image"]).detach().cpu().clone()
                self._record(images, torch.as_tensor(final["context"]).tolist())
            self.episode_id += 1
        return result

    def _record(self, images: Tensor, contexts: list[int]) -> None:
        self.images.extend(images)
        self.contexts.extend(contexts)
        if self.folder is None:
            return
        pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()  # (N, H, W, C)
        for i, (picture, context) in enumerate(zip(pixels, contexts, strict=True)):
            name = f"episode-{self.episode_id:06d}-image-{i:04d}-context-{context}.png"
            _pillow().fromarray(np.squeeze(picture, -1) if picture.shape[-1] == 1 else picture).save(
                self.folder / name
            )


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise ImportError("writing images needs Pillow: pip install 'genenv[viz]'") from None
    return Image
