"""Generators whose weights are tuned: low-rank changes, and the folder that holds what came of it."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

from torch import Tensor, nn

from genenv.checkpoints import save_tensors
from genenv.tiers import RANDOM, backbone_folder, tier_of, write_manifest


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
        backbone: what it was tuned from. A named one stays where it is, the user's own folder is copied.
        out: the folder; an old one is replaced.
    """
    tier = tier_of(backbone)
    named = backbone.removeprefix(RANDOM) in tier.backbones
    partial = out.with_name(f"{out.name}.partial")
    for folder in (partial, out):
        if folder.exists():
            shutil.rmtree(folder)
    if named:
        partial.mkdir(parents=True)
    else:
        shutil.copytree(backbone_folder(backbone), partial)
    state = {name: value.detach().cpu().contiguous() for name, value in plain_state(network).items()}
    save_tensors(state, partial / f"{part}.safetensors")
    write_manifest(partial, tier.name, base=backbone if named else None)
    partial.rename(out)
