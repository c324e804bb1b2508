import functools

import pytest
import torch

from genenv.models.digits_msvq import DigitsMSVQ
from genenv.models.var import VARTransformer
from genenv.zoo import var as zoo


def transformer(**kwargs):
    torch.manual_seed(0)
    tokenizer = DigitsMSVQ().requires_grad_(False)
    return zoo.train_var(tokenizer, batch_size=8, **kwargs)


RECIPES = {
    "msvq": (functools.partial(zoo.train_msvq, batch_size=16), DigitsMSVQ, 60, 6),
    "var": (transformer, VARTransformer, 20, 0),
}
"""Network -> (recipe, type, number of steps, the step from which on it has its final loss)."""


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_lowers_its_loss_and_returns_a_frozen_network(name):
    train, kind, num_steps, first = RECIPES[name]
    reports = []
    model = train(num_steps=num_steps, progress=lambda *report: reports.append(report))
    assert isinstance(model, kind)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [report[:2] for report in reports] == [(step + 1, num_steps) for step in range(num_steps)]
    losses = [report[2] for report in reports][first:]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_repeats_itself_for_its_seed_alone(name):
    train, *_ = RECIPES[name]
    one, same, other = (train(num_steps=8, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(same[key], value) for key, value in one.items())
    assert not all(torch.equal(other[key], value) for key, value in one.items())


def test_the_averaged_weights_are_the_ones_that_are_returned():
    tensors = transformer(num_steps=8).state_dict()
    assert all(value[value.isfinite()].abs().max() < 1e3 for value in tensors.values())
    assert not torch.equal(tensors["head.weight"], transformer(num_steps=2).state_dict()["head.weight"])
