"""What a reward is compared with: that of earlier images, and what a critic expects at each decision."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from agents import processes
from genenv.distributed import gather


class ContextStatistics:
    """Rewards of the last images of each context, which a reward is standardised by (DDPO's per-prompt statistics).

    Args:
        num_contexts: contexts C.
        size: images that are remembered of each.
        least: with fewer of a context, those of all images at hand stand in.
    """

    def __init__(self, num_contexts: int, size: int, least: int):
        self.least = least
        self.memory = torch.zeros(num_contexts, size, dtype=torch.float64)
        self.count = torch.zeros(num_contexts, dtype=torch.int64)

    def standardise(self, reward: Tensor, context: Tensor) -> Tensor:
        """Returns rewards (N,) of contexts (N,) in standard deviations from their mean, after remembering them.

        With several processes each has its own images, and all remember those of all.
        """
        new, of = (gather(each)[0].cpu() for each in (reward.double(), context))
        size = self.memory.shape[1]
        for name in of.unique().tolist():
            found = new[of == name][-size:]
            place = (self.count[name] + torch.arange(len(found))) % size
            self.memory[name, place] = found
            self.count[name] += len(found)
        kept = torch.arange(size) < self.count[:, None]
        number = kept.sum(1).clamp(min=1)
        mean = (self.memory * kept).sum(1) / number
        std = (((self.memory - mean[:, None]) * kept).square().sum(1) / number).sqrt()
        few = self.count < self.least
        mean[few], std[few] = new.mean(), new.std(correction=0)
        own = context.cpu()
        return ((reward.cpu().double() - mean[own]) / (std[own] + 1e-8)).to(reward)

    def state_dict(self) -> dict[str, Any]:
        """Returns what it remembers."""
        return {"memory": self.memory, "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.memory, self.count = state["memory"], state["count"]


class TemporalCritic(nn.Module):
    """Expects an image's reward before each decision (TDPO; Zhang et al. 2024).

    It sees the mean of the generator's hidden states over the places, which are at hand, where the released code sees
    CLIP's features of the decoded noisy latents. Units that have fallen asleep are woken up now and then, as there.

    Args:
        feature_dim: D.
        hidden_dims: widths of the hidden layers.
    """

    def __init__(self, feature_dim: int, hidden_dims: tuple[int, ...] = (256, 64)):
        super().__init__()
        widths = (feature_dim, *hidden_dims)
        self.norm = nn.LayerNorm(feature_dim, elementwise_affine=False)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.output = nn.Linear(widths[-1], 1)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Returns the expected rewards (...) of features (..., D)."""
        return self.output(self._activations(features)[-1])[..., 0]

    @torch.no_grad()
    def wake(self, features: Tensor, threshold: float, generator: torch.Generator) -> int:
        """Gives dormant units new random inputs and no effect, in place (Sokar et al. 2023); returns how many.

        Args:
            features: (M, D) that the units are looked at with.
            threshold: a unit is dormant where its mean activation is at most this share of its layer's.
            generator: of the inputs.
        """
        layers: list[Any] = [*self.hidden, self.output]
        woken = 0
        for (layer, after), active in zip(
            itertools.pairwise(layers), self._activations(features), strict=True
        ):
            mean = processes.mean_rows(active.abs().flatten(0, -2))
            asleep = mean <= threshold * mean.mean()
            fresh = torch.empty(layer.weight.shape).uniform_(-1, 1, generator=generator)
            bound = layer.in_features**-0.5
            layer.weight[asleep] = (bound * fresh).to(layer.weight)[asleep]
            layer.bias[asleep] = 0
            after.weight[:, asleep] = 0
            woken += int(asleep.sum())
        return woken

    def _activations(self, features: Tensor) -> list[Tensor]:
        """Returns the values of the hidden units, layer by layer."""
        values, x = [], self.norm(features)
        for layer in self.hidden:
            x = layer(x).relu()
            values.append(x)
        return values
