"""The policy network."""

import json
from pathlib import Path

import pytest
import torch

from genenv.models.policy import PolicyBackbone

SHAPES = Path(__file__).parents[3] / "shared/parity/real_state_dict_shapes/maskgit_policy.json"


def observation(n: int, length: int = 16, dim: int = 96) -> dict[str, torch.Tensor]:
    return {
        "features": torch.randn(n, length, dim),
        "step": torch.arange(n) % 4,
        "context": torch.arange(n) % 10,
    }


def test_an_untrained_policy_is_the_hand_crafted_schedule():
    policy = PolicyBackbone(96, 4, 4, hidden_dim=32, num_classes=10)
    assert torch.equal(policy(observation(7)), torch.zeros(7, 4))


@pytest.mark.parametrize("changed", ["features", "step", "context"])
def test_the_output_depends_on_every_input(changed):
    torch.manual_seed(0)
    policy = PolicyBackbone(96, 4, 4, hidden_dim=32, num_classes=10)
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    first = observation(5)
    second = dict(first)
    second[changed] = first[changed].flip(0)
    assert not torch.allclose(policy(first), policy(second))


def test_the_network_has_the_names_and_shapes_of_the_released_policy():
    if not SHAPES.is_file():
        pytest.skip("the listing of the released policies is not beside this repository")
    released = json.loads(SHAPES.read_text())["state_dict"]
    policy = PolicyBackbone(768, 16, 4)
    own = {name: list(value.shape) for name, value in policy.state_dict().items()}
    assert own == {name: shape for name, (shape, _) in released.items()}
