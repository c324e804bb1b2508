import functools

import pytest
import torch

from genenv.models.llamagen import LlamaGenTransformer
from genenv.models.vqgan_transformer import VQGANTransformer
from genenv.tiers import load_part
from genenv.zoo.raster import train_llamagen, train_vqgan

RECIPES = [(train_llamagen, LlamaGenTransformer), (train_vqgan, VQGANTransformer)]


@functools.cache
def tokenizer():
    return load_part("vq", "digits")


@pytest.mark.parametrize(("train", "kind"), RECIPES)
def test_the_recipe_lowers_its_loss_and_returns_a_frozen_network(train, kind):
    reports = []
    model = train(tokenizer(), num_steps=40, batch_size=8, progress=lambda *report: reports.append(report))
    assert isinstance(model, kind)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [report[:2] for report in reports] == [(step + 1, 40) for step in range(40)]
    losses = [report[2] for report in reports]
    assert sum(losses[-10:]) < 0.985 * sum(losses[:10])


@pytest.mark.parametrize(("train", "kind"), RECIPES)
def test_the_recipe_repeats_itself_for_its_seed_alone(train, kind):
    one, same, other = (
        train(tokenizer(), num_steps=3, batch_size=8, seed=seed).state_dict() for seed in (4, 4, 5)
    )
    assert all(torch.equal(same[key], value) for key, value in one.items())
    assert not all(torch.equal(other[key], value) for key, value in one.items())
