"""The tiers of generators in folders of diffusers' layout, whose images nobody but their owner knows."""

from __future__ import annotations

from pathlib import Path

from genenv.checkpoints import MANIFEST
from genenv.models.unet import unet_config, unet_shape
from genenv.pipelines import Layout, read_layout
from genenv.rewards.clip import RELEASED_SCORERS
from genenv.tiers import Tier

TIERS: tuple[Tier, ...] = ()


def recognise(backbone: str) -> Tier | None:
    """Returns the tier of a folder with a `UNet2DModel` or a pipeline; None of another, or of one with a manifest."""
    folder = Path(backbone).expanduser()
    if (folder / MANIFEST).is_file():
        return None
    config, layout = unet_config(folder), read_layout(folder)
    if config is not None:
        return Tier(
            name="diffusers",
            image_shape=unet_shape(config),
            class_names=tuple(str(i) for i in range(max(1, config.get("num_class_embeds") or 0))),
            folder_parts=("unet",),
        )
    return None if layout is None else _of_pipeline(layout)


def _of_pipeline(layout: Layout) -> Tier:
    if layout.part == "unet":  # what it is asked to show is a keyword argument of an environment, `prompts`
        return Tier(
            name="stable-diffusion",
            image_shape=layout.image_shape,
            class_names=(),
            prompt="{}",
            scorers=RELEASED_SCORERS,
        )
    return Tier(
        name="dit",
        image_shape=layout.image_shape,
        class_names=layout.labels,
        prompt="a photo of a {}" if layout.named else None,
        scorers=RELEASED_SCORERS,
    )
