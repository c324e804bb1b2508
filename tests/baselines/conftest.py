"""A toy with a known optimum: real digits that a bad schedule fades."""

import dataclasses

import pytest
import torch

from genenv.actions import ScheduleActions
from genenv.data import digits
from genenv.fields import Field
from genenv.rng import Purpose
from genenv.schedules import POSITIVE, UNIT, ScheduleParam, constant, linear_rise

BEST_GUIDANCE = 1.5


@dataclasses.dataclass(frozen=True)
class FadedState:
    """A digit and how much of it shows."""

    digit: torch.Tensor
    context: torch.Tensor
    exposure: torch.Tensor


class FadedDigits:
    """image = real digit * mean over decisions of (brightness - 0.2 |guidance - 1.5|): brightest is most real."""

    horizon, num_contexts, image_shape = 2, 10, (1, 8, 8)
    stochastic = False
    fields = {"exposure": Field((1,), torch.float32, -10.0, 10.0)}  # noqa: RUF012

    def __init__(self, guidance=1.0):
        self.params = (
            ScheduleParam("brightness", UNIT, constant(0.5, self.horizon), span=2.0),
            ScheduleParam("guidance_weight", POSITIVE, linear_rise(guidance, self.horizon)),
        )
        images, labels = digits()
        self.digits = images[labels.argsort(stable=True)]
        self.counts = labels.bincount()
        self.firsts = self.counts.cumsum(0) - self.counts

    def actions(self, mode, device):
        """Makes schedules of the actions."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context, rng):
        """Draws a real digit of each label."""
        place = (rng.uniform(1, purpose=Purpose.START)[:, 0] * self.counts[context]).long()
        return FadedState(self.digits[self.firsts[context] + place], context, torch.zeros(len(context)))

    def observe(self, state, names):
        """Shows the exposure so far."""
        return {"exposure": state.exposure[:, None]}

    def advance(self, state, params, rng):
        """Exposes the digit some more."""
        loss = 0.2 * (params["guidance_weight"] - BEST_GUIDANCE).abs()
        added = (params["brightness"] - loss).float() / self.horizon
        return dataclasses.replace(state, exposure=state.exposure + added)

    def decode(self, state):
        """Returns the digit as bright as it is exposed."""
        return (state.digit * state.exposure[:, None, None, None]).clamp(0, 1)

    def undecided(self, state):
        """Returns one closed place."""
        return torch.zeros(len(state.context), 1, 1)

    def diagnostics(self, state):
        """Has none."""
        return {}


def make_sampler(guidance=1.0, **kwargs):
    return FadedDigits(guidance)


def make_brightness(backbone, device):
    return lambda images, context: 100 * images.mean((1, 2, 3))


@pytest.fixture
def toy():
    """Keyword arguments that put the toy in the place of the generator."""
    return {"sampler": f"{__name__}:make_sampler", "reward": f"{__name__}:make_brightness"}
