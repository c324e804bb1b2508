"""A sampler of tokens without a network."""

import torch

from genenv.actions import TokenActions
from genenv.fields import Field


class Choices:
    """A sampler whose action is a token: its image shows the sum of what was chosen."""

    horizon, image_shape, stochastic, num_contexts = 3, (1, 2, 2), False, 2
    fields = {"total": Field((), torch.int64, 0, 12)}  # noqa: RUF012

    def actions(self, mode, device):
        """Returns the choice of a token."""
        return TokenActions(5)

    def start(self, context, rng):
        """Returns nothing."""
        return torch.zeros_like(context)

    def observe(self, state, names):
        """Shows the sum."""
        return {"total": state}

    def advance(self, state, command, rng):
        """Adds the tokens."""
        return state + command

    def decode(self, state):
        """Returns grey images (N, 1, 2, 2)."""
        return (state / 12)[:, None, None, None].expand(-1, 1, 2, 2).float()

    def undecided(self, state):
        """Returns zeros (N, 1, 1)."""
        return torch.zeros(len(state), 1, 1)

    def diagnostics(self, state):
        """Returns nothing."""
        return {}
