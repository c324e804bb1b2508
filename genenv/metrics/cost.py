"""What an image costs."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from genenv.protocols import Context, Sampler
from genenv.rng import BatchRng


@torch.no_grad()
def flops_per_image(sampler: Sampler, commands: Sequence[Any], context: Context, rng: BatchRng) -> float:
    """Returns the floating point operations of an image: all network calls of its episode, and the decoder.

    Counted over a real episode by torch: matrix products, convolutions and attention, a multiplication and the addition
    that follows being two operations. Papers often count them as one and still call it FLOPs (AdaGen's tables do).

    Args:
        sampler: of the environment.
        commands: of the episode's T decisions.
        context: (N,).
        rng: the streams of the N images.
    """

    def episode() -> None:
        state = sampler.start(context, rng)
        for command in commands:
            state = sampler.advance(state, command, rng)
        sampler.decode(state)

    return flops(episode) / len(context)


def flops(function: Callable[[], object]) -> int:
    """Returns the floating point operations of a call, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    with (
        warnings.catch_warnings(),
        torch.compiler.set_stance("force_eager"),  # operations inside a compiled network would not be seen
        FlopCounterMode(display=False) as counter,
    ):
        warnings.filterwarnings("ignore", message="Using `torch.compile")  # of the counter's own hooks
        function()
    return counter.get_total_flops()
