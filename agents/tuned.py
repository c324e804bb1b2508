"""Generators whose weights are tuned: low-rank changes, and the folder that holds what came of it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from torch import Tensor, nn

from genenv.checkpoints import save_tensors
from genenv.tiers import RANDOM, backbone_folder, base_of, tier_of, write_manifest


def add_lora(network: nn.Module, rank: int) -> None:
    """Makes low-rank changes of every linear layer what is trained, in place; they start at none (Hu et al. 2021).

    Raises:
        ImportError: without peft.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError("low-rank changes need peft: pip install 'genenv[train]'") from None
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), network)


def plain_state(network: nn.Module) -> dict[str, Tensor]:
    """Returns the state of a network with its low-rank changes, if there are any, added to the weights."""
    layers = [name for name, module in network.named_modules() if hasattr(module, "get_delta_weight")]
    if not layers:
        return network.state_dict()
    network = copy.deepcopy(network)
    for name in layers:
        parent, _, child = name.rpartition(".")
        layer = network.get_submodule(name)
        layer.merge()  # type: ignore[operator]
        setattr(network.get_submodule(parent), child, layer.get_base_layer())  # type: ignore[operator]
    return network.state_dict()


def write_generator(network: nn.Module, part: str, backbone: str, out: Path) -> None:
    """Writes a tuned network as a folder that `backbone=` accepts; what else it needs is that of its backbone.

    Args:
        network: the network.
        part: its name, such as "llamagen".
        backbone: what it was tuned from. A named one stays where it is; the files of the user's own folder are copied.
        out: the folder; an old one is replaced.
    """
    tier, partial = tier_of(backbone), out.with_name(f"{out.name}.partial")
    named = backbone.removeprefix(RANDOM) in tier.backbones
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if not named:
        folder = backbone_folder(backbone)
        for path in folder.glob("*.safetensors"):
            shutil.copy2(path, partial)
        for name in tier.folder_parts:
            if (folder / name).is_dir():
                shutil.copytree(folder / name, partial / name)
    state = {name: value.detach().cpu().contiguous() for name, value in plain_state(network).items()}
    save_tensors(state, partial / f"{part}.safetensors")
    write_manifest(partial, tier.name, base=backbone if named else base_of(backbone))
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
