"""How much memory a rollout and an update take: a generator of MaskGIT-L's shape without its network, in chunks.

python -m agents.memory --num-images 4096 --chunk-size 256
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from typing import Annotated

import torch
import tyro
from torch import Tensor

import genenv
from agents.adagen import Config, Trainer
from agents.console import say
from genenv.conditions import Labels
from genenv.console import exit_status
from genenv.envs.maskgit import MaskGITSampler, schedule_params
from genenv.ranges import AT_LEAST_1, AT_LEAST_2, check

ENV_ID = "Stub/MaskGIT-L-v0"
GRID, DIM, CODES = 16, 768, 16
"""Those of MaskGIT-L, but for a small codebook: how tokens are drawn is not what is measured."""


@dataclasses.dataclass(frozen=True)
class Arguments:
    """What to measure."""

    num_images: Annotated[int, AT_LEAST_2] = 4096
    """Images of the rollout."""
    chunk_size: Annotated[int, AT_LEAST_1] = 256
    """Images at once."""
    num_steps: Annotated[int, AT_LEAST_1] = 16
    """Decisions of each image."""
    update: bool = False
    """Take a policy update too, which generates the images a second time."""

    def __post_init__(self):
        check(self)


def main(arguments: Arguments) -> None:
    """Prints the seconds and the largest memory of the process so far."""
    genenv.register(ENV_ID, "agents.memory:make_sampler", backbone="digits", num_steps=16)
    config = Config(
        env_id=ENV_ID,
        num_steps=arguments.num_steps,
        reward="classifier",
        num_envs=arguments.num_images,
        chunk_size=arguments.chunk_size,
        num_iterations=1,
        num_epochs=1,
        num_minibatches=1,
    )
    trainer = Trainer(config)
    say(trainer.needs())
    started, before = time.perf_counter(), peak_gib()
    kept = 4 * arguments.num_images * arguments.num_steps * GRID**2 * DIM / 2**30
    trainer.step() if arguments.update else trainer.rollout(arguments.num_images)
    what = "rollout and update" if arguments.update else "rollout"
    say(
        f"{what} of {arguments.num_images:,} images in {time.perf_counter() - started:.0f} s: before {before:.2f} GiB, "
        f"at most {peak_gib():.2f} GiB; their features together are {kept:.1f} GiB"
    )


def peak_gib() -> float:
    """Returns the largest memory that the process has had, in GiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def make_sampler(
    *, num_steps: int, device: torch.device, needs_features: bool, **_: object
) -> MaskGITSampler:
    """Returns MaskGIT's loop around a table of random features, which takes the place of the network."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(CODES + 1, DIM, generator=generator).to(device)
    logits = torch.randn(CODES + 1, CODES, generator=generator).to(device)

    def network(tokens: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return logits[tokens], table[tokens]

    def detokenise(tokens: Tensor) -> Tensor:
        return tokens[:, None, ::2, ::2] / CODES  # of the digits' size, for their judges

    return MaskGITSampler(
        network,
        detokenise,
        schedule_params(num_steps, 1.0),
        grid_size=GRID,
        codebook_size=CODES,
        condition=Labels(10),
        feature_dim=DIM,
        image_shape=(1, 8, 8),
        needs_features=needs_features,
    )


if __name__ == "__main__":
    sys.exit(exit_status(lambda: main(tyro.cli(Arguments, description=__doc__))))
