"""AdaGen's discriminator, which is trained in turn with the policy."""

from __future__ import annotations

from typing import Protocol

import torch

from agents import processes
from agents.loop import check_finite
from genenv.distributed import gather, sum_over_ranks
from genenv.rewards.adversarial import AdversarialReward
from genenv.rollout import Episode
from genenv.tiers import Tier


class AdversaryConfig(Protocol):
    """What a run's discriminator is trained with; see `agents.adagen.Config`."""

    @property
    def discriminator_batch(self) -> int: ...  # noqa: D102
    @property
    def discriminator_learning_rate(self) -> float: ...  # noqa: D102


class Adversary:
    """Trains the discriminator of an adversarial reward on real images and on those that a policy generates.

    Args:
        reward: whose discriminator it is.
        tier: of the generator, which has real images.
        config: of the run.
        generator: chooses images, alike in every process.

    Attributes:
        optimiser: Adam with betas (0.5, 0.999), as published.
    """

    def __init__(
        self, reward: AdversarialReward, tier: Tier, config: AdversaryConfig, generator: torch.Generator
    ):
        self.reward, self.tier, self.config, self.generator = reward, tier, config, generator
        self.optimiser = torch.optim.Adam(
            reward.discriminator.parameters(), lr=config.discriminator_learning_rate, betas=(0.5, 0.999)
        )

    def update(self, episode: Episode, number: int) -> float:
        """Takes one step on some of an episode's images, which all processes choose alike; returns the loss.

        Args:
            episode: this process's part.
            number: images of all processes.
        """
        own, choice = processes.own(number), torch.randperm(number, generator=self.generator)
        choice = choice[: self.config.discriminator_batch]
        device = episode.context.device
        real = self.tier.real_like(gather(episode.context)[0][choice.to(device)], self.generator)
        chosen = (choice >= own.start) & (choice < own.stop)
        mine = (choice[chosen] - own.start).to(device)
        loss = self.reward.loss(episode.images[mine], real[chosen.to(device)], episode.context[mine]) * (
            len(mine) / len(choice)
        )
        self.optimiser.zero_grad()
        loss.backward()
        processes.sum_gradients(self.reward.discriminator.parameters())
        found = sum_over_ranks(loss.detach()).item()
        check_finite({"discriminator_loss": found})
        self.optimiser.step()
        return found
