"""What an iteration of GRPO takes at a released generator's size: its seconds and memory, with random weights.

python -m agents.real_size --backbone random:imagenet256-llamagen-b --num-groups 2 --group-size 4 --chunk-size 2
python -m agents.real_size --backbone random:imagenet256-llamagen-l --device cuda --precision bfloat16

Rollout, policy, reference and update are those of `agents.grpo`. The images are paid their brightness: what scorers
take is not in it.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from agents.console import say
from agents.grpo import PRESETS, Trainer
from agents.memory import peak_gib
from genenv.console import exit_status
from genenv.protocols import Reward
from genenv.ranges import AT_LEAST_1, AT_LEAST_2, NOT_NEGATIVE, check

REWARD = "agents.real_size:make_brightness"


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    backbone: str = "random:imagenet256-llamagen-b"
    """Whose size."""
    network: str = "llamagen"
    """Which of its generators."""
    num_groups: Annotated[int, AT_LEAST_1] = 12
    """Groups of images of one class."""
    group_size: Annotated[int, AT_LEAST_2] = 12
    """Images of a group."""
    chunk_size: Annotated[int, AT_LEAST_1] = 12
    """Images at once; gradients are accumulated."""
    depth: Annotated[int, AT_LEAST_1] | None = None
    """Layers that are left of the network; None for all."""
    lora_rank: Annotated[int, NOT_NEGATIVE] = 0
    """Rank of low-rank changes; 0 tunes all weights."""
    device: str = "cpu"
    """Where everything runs."""
    precision: str = "float32"
    """Or "bfloat16"."""

    def __post_init__(self):
        check(self)


def main(arguments: Arguments) -> None:
    """Prints the seconds of an iteration, and the largest memory."""
    fields = dataclasses.asdict(arguments)
    depth = fields.pop("depth")
    config = dataclasses.replace(
        PRESETS["paper"], **fields, instance=REWARD, distribution="none", num_iterations=1
    )
    trainer = Trainer(config)
    if depth is not None:
        for network in (trainer.policy.network, trainer.policy.reference):
            assert network is not None
            cut(network, depth)
    weights = sum(p.numel() for p in trainer.policy.network.parameters())
    most_gib = peak_gib
    if trainer.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        most_gib = cuda_peak_gib
    started, before = time.perf_counter(), most_gib()
    record = trainer.step()
    most = most_gib()
    say(
        f"{weights / 1e6:.0f} million weights, {record['images']:,} images, {arguments.chunk_size} at once: "
        f"an iteration in {time.perf_counter() - started:.0f} s, at most {most:.2f} GiB, {before:.2f} before it"
    )


def cuda_peak_gib() -> float:
    """Returns the most memory of the GPU that tensors have had, in GiB."""
    return torch.cuda.max_memory_allocated() / 2**30


def cut(network: nn.Module, depth: int) -> None:
    """Leaves the first layers of a transformer.

    Raises:
        ValueError: if it has fewer.
    """
    name = next(name for name, child in network.named_children() if isinstance(child, nn.ModuleList))
    layers = list(getattr(network, name))
    if depth > len(layers):
        raise ValueError(f"depth must be at most the {len(layers)} layers of the network, got {depth}")
    setattr(network, name, nn.ModuleList(layers[:depth]))
    network.depth = depth  # type: ignore[assignment]


def make_brightness(backbone: str, device: str) -> Reward:
    """Returns the mean of an image as its reward."""

    def brightness(images: Tensor, context: Tensor) -> Tensor:
        return images.mean((1, 2, 3))

    return brightness


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
