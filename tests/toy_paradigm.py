"""A paradigm of somebody else: strokes on 6 x 6 pixels, a tier and networks of its own. Nothing of it is in genenv.

`write_folder` makes the networks' folder; `gym.make("toy_paradigm:Toy/Strokes-v0", backbone=FOLDER)` the environment.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import nn

import genenv
from genenv.actions import ScheduleActions
from genenv.checkpoints import save_tensors
from genenv.conditions import Labels, both
from genenv.fields import feature_field, latent_field, shown_features
from genenv.metrics.classifier import ClassifierExtractor, reference_statistics
from genenv.rewards.features import classifier_features
from genenv.rng import Purpose
from genenv.schedules import POSITIVE, UNIT, ScheduleParam, constant, linear_rise
from genenv.tiers import Tier, load_part, register_tier, write_manifest

NAMES = ("bar", "pole", "cross")
SIDE, PATCH, DIM = 6, 3, 8


def real_images():
    """Returns 150 noisy strokes (150, 1, 6, 6) in [0, 1] and what they are (150,)."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(150) % len(NAMES)
    shapes = torch.zeros(len(NAMES), SIDE, SIDE)
    shapes[0, 2:4] = shapes[1, :, 2:4] = shapes[2, 2:4] = shapes[2, :, 2:4] = 0.8
    noise = 0.2 * torch.rand(150, 1, SIDE, SIDE, generator=generator)
    return (shapes[labels][:, None] + noise).clamp(0, 1), labels


class Painter(nn.Module):
    """Says what the finished canvas of a label should be; the label after the last is any."""

    num_classes = len(NAMES)

    def __init__(self):
        super().__init__()
        self.shapes = nn.Parameter(torch.zeros(len(NAMES) + 1, SIDE, SIDE))
        self.patches = nn.Conv2d(2, DIM, PATCH, stride=PATCH)

    def forward(self, canvas, labels):
        """Returns the goal (N, 1, 6, 6) and features (N, 4, D)."""
        goal = self.shapes[labels][:, None]
        return goal, self.patches(torch.cat([canvas, goal], dim=1)).flatten(2).transpose(1, 2)


class Eye(nn.Module):
    """A classifier of strokes whose features are six projections."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(SIDE**2, 6), nn.Linear(6, len(NAMES))

    def features(self, images):
        """Returns features (N, 6)."""
        return self.body(images.flatten(1))

    def forward(self, images):
        """Returns logits (N, 3)."""
        return self.head(self.features(images))


class Contrast:
    """Pays what lies in the middle against what lies in the corners."""

    name = "contrast"

    def __call__(self, images, context):
        """Returns (N,)."""
        return images[:, 0, 2:4, 2:4].mean((1, 2)) - images[:, 0, ::5, ::5].mean((1, 2))


def make_contrast(backbone, device):
    """Returns the tier's own reward."""
    return Contrast()


STROKES = Tier(
    name="strokes",
    image_shape=(1, SIDE, SIDE),
    class_names=NAMES,
    parts={"painter": Painter, "judge": Eye, "reward_features": Eye},
    licence="CC0",
    prompt="a {}",
    real_images=real_images,
    judges={"strokes": ClassifierExtractor},
    reward_features=classifier_features,
    rewards={"contrast": make_contrast},
    default_reward="contrast",
)


def write_folder(folder: Path) -> str:
    """Writes the networks, and returns the backbone's name: the folder."""
    torch.manual_seed(0)
    images, labels = real_images()
    painter = Painter()
    means = torch.stack([images[labels == c].mean((0, 1)) for c in range(len(NAMES))])
    painter.shapes.data = torch.cat([means, means.mean(0, keepdim=True)])
    folder.mkdir(parents=True, exist_ok=True)
    for part, network in {"painter": painter, "judge": Eye(), "reward_features": Eye()}.items():
        save_tensors(network.state_dict(), folder / f"{part}.safetensors")
    write_manifest(folder, STROKES.name)
    statistics = reference_statistics(load_part("judge", str(folder)), images)
    save_tensors(statistics, folder / "reference.safetensors")
    write_manifest(folder, STROKES.name)
    return str(folder)


@dataclasses.dataclass(frozen=True)
class Canvas:
    """What is painted so far."""

    paint: torch.Tensor  # (N, 1, 6, 6)
    context: torch.Tensor
    step: int
    goals: torch.Tensor  # (N, 1, 6, 6)
    blind: torch.Tensor  # (N, 1, 6, 6), without the class
    features: torch.Tensor  # (N, 4, D)


class Strokes:
    """Moves the canvas to the goal, by a share of the way at each decision, and shakes a little."""

    stochastic = True
    image_shape = (1, SIDE, SIDE)

    def __init__(self, painter, horizon):
        self.painter, self.horizon, self.condition = painter, horizon, Labels(painter.num_classes)
        self.params = (
            ScheduleParam("share", UNIT, constant(0.6, horizon), span=2.0),
            ScheduleParam("guidance_weight", POSITIVE, linear_rise(0.5, horizon), span=2.0),
        )
        self.fields = {"canvas": latent_field(self.image_shape), "features": feature_field(4, DIM)}

    @property
    def num_contexts(self):
        """How many kinds of strokes there are."""
        return self.condition.num_contexts

    def actions(self, mode, device):
        """Makes schedules of the actions."""
        return ScheduleActions(self.params, mode, device)

    def start(self, context, rng):
        """Returns a canvas of noise."""
        paint = rng.at(0).normal(*self.image_shape, purpose=Purpose.START).float()
        return self._look(paint, context, 0)

    def _look(self, paint, context, step):
        goals, features = self.painter(paint.repeat(2, 1, 1, 1), both(self.condition, context))
        goal, blind = goals.chunk(2)
        return Canvas(paint, context, step, goal, blind, features[: len(paint)])

    def observe(self, state, names):
        """Shows the canvas, and the painter's features."""
        return {"canvas": state.paint.clamp(-1e4, 1e4), "features": shown_features(state.features)}

    def advance(self, state, command, rng):
        """Paints on."""
        weight, share = (command[n].float().view(-1, 1, 1, 1) for n in ("guidance_weight", "share"))
        goal = state.goals + weight * (state.goals - state.blind)
        shake = 0.1 * rng.at(state.step).normal(*self.image_shape).float()
        paint = (state.paint + share * (goal - state.paint) + shake).clamp(-1e4, 1e4)
        return self._look(paint, state.context, state.step + 1)

    def decode(self, state):
        """Returns the canvas as an image."""
        return state.paint.clamp(0, 1)

    def undecided(self, state):
        """Returns the share of the decisions that are to come."""
        return torch.full((len(state.paint), 1, 1), 1 - state.step / self.horizon)

    def diagnostics(self, state):
        """Returns the paint spent."""
        return {
            "nfe": torch.full_like(state.context, 2 * (state.step + 1)),
            "paint": state.paint.abs().mean((1, 2, 3)),
        }


def make_sampler(backbone, num_steps, device, dtype, needs_features, compile, horizon=3):
    """Returns the sampler of a folder; `horizon` stands for the usual number of steps."""
    painter = load_part("painter", backbone).to(device)
    return Strokes(painter, horizon if num_steps is None else num_steps)


register_tier(STROKES)
genenv.register("Toy/Strokes-v0", "toy_paradigm:make_sampler", backbone="strokes")
