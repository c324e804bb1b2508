"""The tier of a generator in a folder of diffusers' layout, whose images nobody but its owner knows."""

from __future__ import annotations

from pathlib import Path

from genenv.checkpoints import MANIFEST
from genenv.models.unet import unet_config, unet_shape
from genenv.tiers import Tier

TIERS: tuple[Tier, ...] = ()


def recognise(backbone: str) -> Tier | None:
    """Returns the tier of a folder that holds a `UNet2DModel`; None of another, or one with a manifest."""
    folder = Path(backbone).expanduser()
    config = None if (folder / MANIFEST).is_file() else unet_config(folder)
    if config is None:
        return None
    return Tier(
        name="diffusers",
        image_shape=unet_shape(config),
        class_names=tuple(str(i) for i in range(max(1, config.get("num_class_embeds") or 0))),
        folder_parts=("unet",),
    )
