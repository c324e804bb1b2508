"""Counter-based random numbers: one independent stream per image."""

from __future__ import annotations

import dataclasses
import enum

import torch
from torch import Tensor

MAX_SEED = 2**63 - 1
"""The largest seed of an image."""
IMAGES_PER_RUN = 10**9
"""Image seeds that a training run has for itself."""
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Tensor, key: Tensor, rounds: int = 10) -> Tensor:
    """Returns the Philox4x32 block of each counter and key (Salmon et al. 2011, "Parallel random numbers").

    Args:
        counter: (..., 4) int64 holding 32-bit words.
        key: (..., 2) int64 holding 32-bit words, broadcast against `counter`.
        rounds: number of rounds; 10 is the recommended strength.

    Returns:
        (..., 4) int64 holding 32-bit words.
    """
    c0, c1, c2, c3 = counter.unbind(-1)
    k0, k1 = key.unbind(-1)
    for _ in range(rounds):
        # A product of two 32-bit words wraps in int64, but its bits are those of the unsigned product.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return torch.stack(torch.broadcast_tensors(c0, c1, c2, c3), dim=-1)


class Purpose(enum.IntEnum):
    """What a number is drawn for: two draws of one step with different purposes share no number."""

    TRANSITION = 0
    CONTEXT = 1
    START = 2
    POLICY = 3


class Stream(enum.IntEnum):
    """What images are made for: those of different streams share no number, whatever their seeds."""

    TRAINING = 0
    TUNING = 1
    """Choices between finished schedules."""
    HELD_OUT = 2
    """Reported numbers: nothing is chosen by these images."""


def training_seed(run: int, image: int) -> int:
    """Returns the seed of a run's training image, both counted from 0 without an end: beyond `MAX_SEED` it wraps."""
    return (run * IMAGES_PER_RUN + image) % (MAX_SEED + 1)


@dataclasses.dataclass(frozen=True)
class BatchRng:
    """N independent sources of random numbers that are drawn from together.

    The numbers of an image depend on its seed, the stream and the episode, and on nothing else: they are the same in
    every batch and on every device. Images follow them up to the rounding of the network's matrix products, which may
    differ with the batch and the device. `step` says which decision is drawing, so that an old state can be advanced
    again with the same numbers.

    Attributes:
        seeds: (N,) int64.
        episode: number of episodes these seeds have played before.
        step: decision index; context and start draw at step 0.
        stream: what the images are made for.
    """

    seeds: Tensor
    episode: int = 0
    step: int = 0
    stream: Stream = Stream.TRAINING

    def at(self, step: int) -> BatchRng:
        """Returns the same streams at another decision."""
        return dataclasses.replace(self, step=step)

    def uniform(self, *shape: int, purpose: Purpose = Purpose.TRANSITION) -> Tensor:
        """Returns (N, *shape) float64 samples from the open interval (0, 1), multiples of 2^-33."""
        size = torch.Size(shape).numel()
        blocks = torch.arange(-(-size // 4), device=self.seeds.device)
        use = purpose + len(Purpose) * self.stream
        where = torch.tensor([self.step, self.episode, use], device=self.seeds.device)
        counter = torch.cat([blocks[:, None], where.expand(len(blocks), 3)], dim=1)  # (B, 4)
        key = torch.stack([self.seeds & _MASK, (self.seeds >> 32) & _MASK], dim=-1)  # (N, 2)
        words = philox4x32(counter, key[:, None]).flatten(1)[:, :size]
        return ((words.double() + 0.5) * 2.0**-32).view(len(self.seeds), *shape)

    def normal(self, *shape: int, purpose: Purpose = Purpose.TRANSITION) -> Tensor:
        """Returns (N, *shape) float64 standard normal samples (Box-Muller)."""
        radius, angle = self.uniform(2, *shape, purpose=purpose).unbind(1)
        return (-2 * radius.log()).sqrt() * torch.cos(2 * torch.pi * angle)

    def gumbel(self, *shape: int, purpose: Purpose = Purpose.TRANSITION) -> Tensor:
        """Returns (N, *shape) float64 standard Gumbel samples."""
        return gumbel(self.uniform(*shape, purpose=purpose))


def gumbel(uniform: Tensor) -> Tensor:
    """Returns standard Gumbel samples of uniform ones."""
    return -torch.log(-torch.log(uniform))


def categorical(logits: Tensor, uniform: Tensor) -> Tensor:
    """Returns one token per row by the inverse of the cumulative distribution.

    Args:
        logits: (..., V).
        uniform: (...) float64 in (0, 1), one per row.

    Returns:
        (...) int64: the number of entries whose cumulative probability is at most `uniform`.
    """
    cumulative = logits.softmax(-1).double().cumsum(-1)
    threshold = uniform.unsqueeze(-1) * cumulative[..., -1:]  # rounding may leave the last entry below 1
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(-1).clamp(max=logits.shape[-1] - 1)
