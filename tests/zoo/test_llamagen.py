import functools

import torch

from genenv.models.llamagen import LlamaGenTransformer
from genenv.tiers import load_part
from genenv.zoo.llamagen import train_llamagen


@functools.cache
def tokenizer():
    return load_part("vq", "digits")


def train(**kwargs):
    return train_llamagen(tokenizer(), batch_size=8, **kwargs)


def test_the_recipe_lowers_its_loss_and_returns_a_frozen_network():
    reports = []
    model = train(num_steps=40, progress=lambda *report: reports.append(report))
    assert isinstance(model, LlamaGenTransformer)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [report[:2] for report in reports] == [(step + 1, 40) for step in range(40)]
    losses = [report[2] for report in reports]
    assert sum(losses[-10:]) < 0.985 * sum(losses[:10])


def test_the_recipe_repeats_itself_for_its_seed_alone():
    one, same, other = (train(num_steps=3, seed=seed).state_dict() for seed in (4, 4, 5))
    assert all(torch.equal(same[key], value) for key, value in one.items())
    assert not all(torch.equal(other[key], value) for key, value in one.items())
