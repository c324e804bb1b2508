import pytest
import torch

from genenv.models.dit import PixelDiT
from genenv.solvers import LinearPath, VPLinear
from genenv.zoo.ode import train_dit, train_sit

RECIPES = pytest.mark.parametrize("train", [train_dit, train_sit])


@RECIPES
def test_the_recipe_lowers_its_loss_and_returns_a_frozen_network(train):
    reports = []
    model = train(num_steps=40, batch_size=16, progress=lambda *report: reports.append(report))
    assert isinstance(model, PixelDiT)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [report[:2] for report in reports] == [(step + 1, 40) for step in range(40)]
    losses = [report[2] for report in reports]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])


@RECIPES
def test_the_recipe_repeats_itself_for_its_seed_alone(train):
    one, same, other = (train(num_steps=3, batch_size=8, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(same[key], value) for key, value in one.items())
    assert not all(torch.equal(other[key], value) for key, value in one.items())


def test_each_recipe_has_the_path_of_its_environment():
    assert train_dit(num_steps=1, batch_size=8).path == VPLinear()
    assert train_sit(num_steps=1, batch_size=8).path == LinearPath()
