"""An image depends on its seed and its actions: not on its place, its neighbours or how many there are."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from genenv.conditions import Labels
from genenv.contexts import Contexts
from genenv.envs.maskgit import MaskGITSampler, schedule
from genenv.envs.ode import ODESampler, evenly_spaced
from genenv.rng import Purpose
from genenv.solvers import SOLVERS, LinearPath
from genenv.vector_env import GenVectorEnv

GRID, CODES, CLASSES, STEPS = 3, 5, 4, 3


def maskgit():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(CLASSES + 1, CODES + 1, CODES, generator=generator)

    def network(tokens, labels):
        logits = table[labels[:, None], tokens]
        return logits, logits

    return MaskGITSampler(
        network,
        lambda tokens: tokens[:, None] / CODES,
        schedule(STEPS),
        grid_size=GRID,
        codebook_size=CODES,
        condition=Labels(CLASSES),
        feature_dim=CODES,
        image_shape=(1, GRID, GRID),
    )


def flow():
    def network(latents, time, labels):
        return (latents + labels.view(-1, 1, 1, 1)) * time.view(-1, 1, 1, 1), latents.flatten(1)[:, :, None]

    return ODESampler(
        network,
        lambda latents: latents.sigmoid(),
        LinearPath(),
        SOLVERS["dpm2s"],
        evenly_spaced(0.01, 0.99, STEPS, 1.0, default=1.0),
        latent_shape=(1, 2, 2),
        num_tokens=4,
        feature_dim=1,
        condition=Labels(CLASSES),
        image_shape=(1, 2, 2),
        guided_channels=1,
    )


def images(sampler, seeds, plan, stream, noise):
    """Returns {seed: image} of an episode whose actions explore with the images' own streams."""
    names = [str(i) for i in range(CLASSES)]
    env = GenVectorEnv(sampler, Contexts(names, plan), len(seeds), autoreset_mode="Disabled")
    env.reset(seed=seeds, options={"stream": stream})
    size = env.single_action_space.shape[0]
    info = {}
    for t in range(sampler.horizon):
        *_, info = env.step(noise * env.rng.at(t).normal(size, purpose=Purpose.POLICY))
    return dict(zip(seeds, info["image"], strict=True)), dict(
        zip(seeds, info["context"].tolist(), strict=True)
    )


seed_lists = st.lists(st.integers(0, 50) | st.integers(0, 2**63 - 1), min_size=1, max_size=6, unique=True)


@pytest.mark.parametrize("make", [maskgit, flow])
@settings(max_examples=40)
@given(
    seeds=seed_lists,
    plan=st.sampled_from(["uniform", "cycle", "grouped:2", "grouped:5", [3, 1]]),
    stream=st.sampled_from(["training", "tuning", "held_out"]),
    noise=st.sampled_from([0.0, 0.5]),
    data=st.data(),
)
def test_permuted_and_divided_batches_hold_the_same_images(make, seeds, plan, stream, noise, data):
    sampler = make()
    expected, contexts = images(sampler, seeds, plan, stream, noise)
    shuffled = data.draw(st.permutations(seeds))
    cut = math.ceil(len(seeds) / 2)
    for part in (shuffled[:cut], shuffled[cut:]):
        if part:
            found, shown = images(sampler, part, plan, stream, noise)
            assert all(torch.equal(found[seed], expected[seed]) for seed in part)
            assert all(shown[seed] == contexts[seed] for seed in part)


def test_the_streams_and_the_seeds_differ():
    sampler = flow()
    found = [
        images(sampler, [seed], "uniform", stream, 0.5)[0][seed]
        for seed in (0, 1, 2)
        for stream in ("training", "tuning", "held_out")
    ]
    assert len({tuple(image.flatten().tolist()) for image in found}) == 9
