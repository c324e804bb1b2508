"""An image depends on its seed and its actions: not on its place, its neighbours or how many there are."""

import functools
import itertools
import math

import gymnasium as gym
import pytest
import torch
from episodes import SHORT
from hypothesis import given, settings
from hypothesis import strategies as st

import genenv
from genenv.conditions import Labels
from genenv.contexts import Contexts
from genenv.envs.maskgit import MaskGITSampler, schedule_params
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
        schedule_params(STEPS),
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
            for seed in part:  # the end of a vector may be rounded otherwise than its middle
                torch.testing.assert_close(found[seed], expected[seed], rtol=0, atol=1e-6)
            assert all(shown[seed] == contexts[seed] for seed in part)


@functools.cache
def shipped(env_id):
    """Returns the digits' sampler of an id and the names of its contexts."""
    env = gym.make_vec(env_id, num_envs=1, reward="none", **SHORT[env_id]).unwrapped
    return env.sampler, env.contexts.names


def random_actions(env, t):
    """Returns actions (N, ...) of decision t, drawn from the images' own streams."""
    field, streams = env.actions.field, env.rng.at(t)
    if not field.dtype.is_floating_point:
        return (streams.uniform(purpose=Purpose.POLICY) * (field.high + 1)).long()
    return 0.5 * streams.normal(*field.shape, purpose=Purpose.POLICY)


def shown(env_id, seeds, plan, stream, episodes):
    """Returns {seed: (context, group, image)} of each episode of an id, with actions of the images' own streams."""
    sampler, names = shipped(env_id)
    plan = [label % len(names) for label in plan] if isinstance(plan, list) else plan
    env = GenVectorEnv(sampler, Contexts(names, plan), len(seeds), autoreset_mode="Disabled")
    found = []
    for episode in range(episodes):
        env.reset(**({} if episode else {"seed": seeds, "options": {"stream": stream}}))
        info = {}
        for t in range(sampler.horizon):
            *_, info = env.step(random_actions(env, t))
        each = zip(info["context"].tolist(), info["group"].tolist(), info["image"], strict=True)
        found.append(dict(zip(seeds, each, strict=True)))
    return found


plans = st.one_of(
    st.sampled_from(["uniform", "cycle"]),
    (st.integers(1, 3) | st.integers(1, 2**40)).map(lambda size: f"grouped:{size}"),
    st.lists(st.integers(0, 9), min_size=1, max_size=4),
)


@pytest.mark.parametrize("env_id", genenv.env_ids())
@settings(max_examples=8)
@given(
    seeds=st.lists(st.integers(0, 50) | st.integers(0, 2**63 - 1), min_size=3, max_size=5, unique=True),
    plan=plans,
    stream=st.sampled_from(["training", "tuning", "held_out"]),
    episodes=st.integers(1, 2),
    data=st.data(),
)
def test_context_group_and_image_of_every_id_follow_the_seed(env_id, seeds, plan, stream, episodes, data):
    expected = shown(env_id, seeds, plan, stream, episodes)
    shuffled = data.draw(st.permutations(seeds))
    cuts = sorted({0, len(seeds), *data.draw(st.lists(st.integers(0, len(seeds)), max_size=2))})
    for start, end in itertools.pairwise(cuts):
        part = shuffled[start:end]
        for one, other in zip(shown(env_id, part, plan, stream, episodes), expected, strict=True):
            for seed in part:
                assert one[seed][:2] == other[seed][:2]
                torch.testing.assert_close(one[seed][2], other[seed][2], rtol=0, atol=1e-4)


def test_the_streams_and_the_seeds_differ():
    sampler = flow()
    found = [
        images(sampler, [seed], "uniform", stream, 0.5)[0][seed]
        for seed in (0, 1, 2)
        for stream in ("training", "tuning", "held_out")
    ]
    assert len({tuple(image.flatten().tolist()) for image in found}) == 9
