import pytest
import torch
from torch import nn

from genenv.metrics.clip_score import clip_score
from genenv.models.clip import CLIP

ANGLES = {"up": 0.0, "right": torch.pi / 2}


def compass():
    """A CLIP of hand: an image's mean pixel and a text are angles."""

    def unit(angle):
        return torch.stack([angle.cos(), angle.sin()], -1)

    network = nn.Linear(1, 1)
    return CLIP(
        network,
        lambda pixels: 3 * unit(pixels.mean((1, 2, 3))),
        lambda texts, device: 2 * unit(torch.tensor([ANGLES[text] for text in texts], device=device)),
        image_size=4,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )


def test_the_score_is_the_mean_cosine_with_the_own_prompt():
    angles = torch.tensor([0.0, 0.5, 1.0])
    images = angles.view(3, 1, 1, 1).expand(3, 1, 4, 4)
    labels = torch.tensor([0, 0, 1])
    expected = torch.stack([angles[0].cos(), angles[1].cos(), angles[2].sin()]).mean().item()
    assert clip_score(compass(), ("up", "right"), images, labels) == pytest.approx(expected)
