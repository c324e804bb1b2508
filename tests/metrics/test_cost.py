import pytest
import torch
from torch import nn

from genenv.metrics.cost import flops_per_image
from genenv.rng import BatchRng

WIDTH, TOKENS = 6, 5


class Sampler:
    """Three decisions of a linear layer and attention, and a decoder with a convolution."""

    horizon = 3

    def __init__(self, compiled=False):
        self.network = nn.Linear(WIDTH, WIDTH)
        self.call = torch.compile(self.network, backend="eager") if compiled else self.network
        self.decoder = nn.Conv2d(1, 2, 3, padding=1)

    def start(self, context, rng):
        return torch.zeros(len(context), 1, TOKENS, WIDTH)

    def advance(self, state, params, rng):
        assert params["w"].shape == (len(state),)
        x = self.call(state)
        return nn.functional.scaled_dot_product_attention(x, x, x)

    def decode(self, state):
        return self.decoder(state)


@pytest.mark.parametrize("num_images", [1, 4])
@pytest.mark.parametrize("compiled", [False, True])
def test_the_operations_are_those_counted_by_hand(num_images, compiled):
    commands = [{"w": torch.zeros(num_images)}] * 3
    context = torch.zeros(num_images, dtype=torch.int64)
    found = flops_per_image(Sampler(compiled), commands, context, BatchRng(torch.arange(num_images)))
    linear, attention = 2 * TOKENS * WIDTH * WIDTH, 2 * 2 * TOKENS * TOKENS * WIDTH
    decoder = 2 * TOKENS * WIDTH * 2 * 9
    assert found == 3 * (linear + attention) + decoder
