"""Generators whose weights are tuned: low-rank changes, and the folder that holds what came of it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from genenv.checkpoints import read_json, replacing_folder, save_tensors
from genenv.pipelines import INDEX, NoisePredictor
from genenv.tiers import RANDOM, backbone_folder, base_of, tier_of, write_manifest

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
"""What rollouts and updates are computed in."""
WEIGHTS = {".bin", ".ckpt", ".pt", ".pth", ".safetensors"}
"""Endings of files that hold a whole generator, as some lie beside a pipeline's folders."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Returns the context of a precision, one of `PRECISIONS`; the weights stay as they are."""
    kind = PRECISIONS[precision]
    return torch.autocast(device.type, kind, enabled=kind != torch.float32)


def add_lora(network: nn.Module, rank: int) -> None:
    """Makes low-rank changes what is trained, in place; they start at none (Hu et al. 2021).

    They are of every linear layer, and of a pipeline's network of those in its `lora_targets`.

    Raises:
        ImportError: without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError("low-rank changes need peft: pip install 'genenv[train]'") from None
    if isinstance(network, NoisePredictor):
        network, names = network.model, list(network.lora_targets)
    else:
        names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)


def save_lora(network: NoisePredictor, folder: Path) -> None:
    """Writes a Stable Diffusion's low-rank changes alone, as `load_lora_weights(folder)` of diffusers reads them.

    Raises:
        ValueError: if the network has none, or is none of prompts, for which diffusers reads them alone.
    """
    if not hasattr(network.model, "peft_config"):
        raise ValueError("the network has no low-rank changes: add_lora makes them")
    if network.part != "unet":
        raise ValueError(
            f"low-rank changes are read into a UNet alone, got a {type(network.model).__name__}: "
            "write_generator writes its weights"
        )
    from diffusers.utils.state_dict_utils import convert_state_dict_to_diffusers
    from peft import get_peft_model_state_dict

    # The file says no scale: alpha is the rank, which is what is taken then.
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(network.model))
    tensors = {f"unet.{name}": value.detach().cpu() for name, value in state.items()}
    save_tensors(tensors, folder / "pytorch_lora_weights.safetensors")


def plain(network: nn.Module) -> nn.Module:
    """Returns the network, or a copy with its low-rank changes added to the weights where there are some."""
    layers = [name for name, module in network.named_modules() if hasattr(module, "get_delta_weight")]
    if not layers:
        return network
    network = copy.deepcopy(network)
    for name in layers:
        parent, _, child = name.rpartition(".")
        layer = network.get_submodule(name)
        layer.merge()  # type: ignore[operator]
        setattr(network.get_submodule(parent), child, layer.get_base_layer())  # type: ignore[operator]
    return network


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Returns the state of a network with its low-rank changes, if there are any, added to the weights."""
    return plain(network).state_dict()


def write_generator(network: nn.Module, part: str, backbone: str, out: Path) -> None:
    """Writes a tuned network as a folder that `backbone=` accepts; what else it needs is that of its backbone.

    A pipeline's is a pipeline of diffusers again.

    Args:
        network: the network.
        part: its name, such as "llamagen", or "unet" of a pipeline.
        backbone: what it was tuned from. A named one stays where it is; the files of the user's own folder are copied.
        out: the folder; an old one is replaced.
    """
    with replacing_folder(out) as partial:
        if isinstance(network, NoisePredictor):
            _copy_pipeline(Path(backbone).expanduser(), partial, without=part)
            plain(network).model.save_pretrained(partial / part)  # type: ignore[operator]
        else:
            _write_backbone(network, part, backbone, partial)


def _copy_pipeline(folder: Path, out: Path, without: str) -> None:
    """Copies what a pipeline of diffusers is made of but one part, and what lies beside it, such as a licence."""
    parts = set(read_json(folder / INDEX)) - {without}
    for path in folder.iterdir():
        if path.is_dir() and path.name in parts:
            shutil.copytree(path, out / path.name)
        elif path.is_file() and path.suffix not in WEIGHTS:
            shutil.copy2(path, out)


def _write_backbone(network: nn.Module, part: str, backbone: str, out: Path) -> None:
    tier = tier_of(backbone)
    named = backbone.removeprefix(RANDOM) in tier.backbones
    if not named:
        folder = backbone_folder(backbone)
        for path in folder.glob("*.safetensors"):
            shutil.copy2(path, out)
        for name in tier.folder_parts:
            if (folder / name).is_dir():
                shutil.copytree(folder / name, out / name)
    state = {name: value.detach().cpu().contiguous() for name, value in plain_state(network).items()}
    save_tensors(state, out / f"{part}.safetensors")
    write_manifest(out, tier.name, base=backbone if named else base_of(backbone))
