"""The `UNet2DModel` of diffusers as a denoiser of noise levels."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genenv.json_text import read_object
from genenv.models.pretrained import COUNT, check_entries, check_types, from_folder, in_one_line, is_count
from genenv.solvers import PathDenoiser, VPTable

MODEL = "UNet2DModel"


@dataclasses.dataclass(frozen=True)
class UNetDenoiser:
    """D(x; sigma) of a network that predicts the noise at numbered steps (Ho et al. 2020).

    Attributes:
        model: (latents (N, C, H, W), steps (N,), labels (N,) or None) -> an object whose `sample` is the noise.
        path: the noise levels of the steps.
        shape: (C, H, W).
        num_classes: 0 where the network knows no labels.
    """

    model: nn.Module
    path: VPTable
    shape: tuple[int, int, int]
    num_classes: int

    @property
    def num_contexts(self) -> int:
        """How many contexts there are."""
        return max(1, self.num_classes)

    def __call__(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """Returns the data (N, C, H, W) expected behind x (N, C, H, W) at noise levels (N,) float64."""
        labels = context if self.num_classes else None
        dtype = next(self.model.parameters()).dtype

        def noise(latents: Tensor, time: Tensor) -> Tensor:
            return self.model(latents.to(dtype), time.float(), labels).sample.float()

        return PathDenoiser(self.path, noise)(x, sigma)


def unet_config(folder: Path) -> dict[str, Any] | None:
    """Returns the configuration of the `UNet2DModel` in a folder of diffusers' layout, None where there is none.

    Raises:
        ValueError: if it cannot be read, does not say of what images it is, or asks for more than the network, naming
            the file and the field.
    """
    for path in (folder / "unet" / "config.json", folder / "config.json"):
        if path.is_file():
            config = read_object(path)
            if config.get("_class_name") != MODEL:
                return None
            _check_images(config, path)
            return config
    return None


def _check_images(config: dict[str, Any], path: Path) -> None:
    size, channels, classes = (
        config.get(name) for name in ("sample_size", "in_channels", "num_class_embeds")
    )
    sides = size if isinstance(size, list) and len(size) == 2 else [size]
    check_entries(
        config,
        path,
        ("sample_size", f"{COUNT}, or two of them", all(map(is_count, sides))),
        ("in_channels", COUNT, is_count(channels)),
        ("num_class_embeds", f"null or {COUNT}", classes is None or is_count(classes)),
    )


def unet_shape(config: dict[str, Any]) -> tuple[int, int, int]:
    """Returns (C, H, W) of a configuration."""
    size = config["sample_size"]
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config["in_channels"], height, width


def load_unet(folder: str, dtype: torch.dtype = torch.float32) -> UNetDenoiser:
    """Returns the network of a folder: a pipeline's ("unet/" and "scheduler/"), or one with all files side by side.

    Nothing but safetensors and JSON is read.

    Raises:
        ImportError: without diffusers.
        ValueError: if a file is missing or damaged, a configuration says what cannot be meant, or the network predicts
            something else than the noise.
    """
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
    except ImportError:
        raise ImportError("a UNet2DModel needs diffusers: pip install 'genenv[diffusers]'") from None
    root = Path(folder).expanduser()
    inner = "unet" if (root / "unet" / "config.json").is_file() else None
    steps = "scheduler" if (root / "scheduler" / "scheduler_config.json").is_file() else None
    if unet_config(root) is None:  # it refuses what cannot be meant
        raise ValueError(f"{folder} must hold the config.json of a {MODEL}, in itself or in its folder unet")
    check_types(UNet2DModel, root / (inner or "") / "config.json")
    check_types(DDPMScheduler, root / (steps or "") / "scheduler_config.json")
    try:
        model = from_folder(UNet2DModel, root, inner, dtype)
        scheduler: Any = DDPMScheduler.from_pretrained(str(root), subfolder=steps, local_files_only=True)
    except Exception as error:  # their constructors check little of what they are given
        raise ValueError(
            f"{folder} must hold a {MODEL} in safetensors and a scheduler_config.json: {in_one_line(error)}"
        ) from None
    if scheduler.config["prediction_type"] != "epsilon":
        raise ValueError(
            f"the network of {folder} must predict the noise ('epsilon'), got {scheduler.config['prediction_type']!r}"
        )
    return UNetDenoiser(
        model.requires_grad_(False),
        VPTable.of(scheduler.alphas_cumprod.double()),
        unet_shape(model.config),
        model.config.get("num_class_embeds") or 0,
    )
