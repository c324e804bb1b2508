import pytest
import torch
from oracles import maskgit_decision

from genenv.conditions import Labels
from genenv.envs.maskgit import MaskGITSampler, schedule_params
from genenv.rng import BatchRng, gumbel

GRID, CODES, CLASSES, DIM, HORIZON = 4, 12, 3, 8, 5


class ToyNetwork:
    """A fixed random function of the grid and the label that remembers how many rows each call had."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.embedding = torch.randn(CODES + 1, DIM, generator=generator)
        self.label = 2 * torch.randn(CLASSES + 1, DIM, generator=generator)
        self.mixing = torch.randn(GRID**2, GRID**2, generator=generator) / 2
        self.rows = []

    def __call__(self, tokens, labels):
        self.rows.append(len(tokens))
        features = torch.tanh(self.mixing @ self.embedding[tokens] + self.label[labels][:, None])
        return 1.5 * features @ self.embedding[:-1].T, features


def make(needs_features=False, horizon=HORIZON):
    network = ToyNetwork()
    sampler = MaskGITSampler(
        network,
        lambda tokens: tokens[:, None] / CODES,
        schedule_params(horizon, guidance_weight=2.0),
        grid_size=GRID,
        codebook_size=CODES,
        condition=Labels(CLASSES),
        feature_dim=DIM,
        image_shape=(1, GRID, GRID),
        needs_features=needs_features,
    )
    return sampler, network


def random_params(num_images, horizon=HORIZON, seed=0):
    """Returns a schedule of its own for every image and decision, [{name: (N,)}]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return low + (high - low) * torch.rand(num_images, generator=generator, dtype=torch.float64)

    return [
        {
            "mask_ratio": draw(0, 1),
            "mask_temperature": draw(0, 5),
            "token_temperature": draw(0.3, 2),
            "guidance_weight": draw(0, 3),
        }
        for _ in range(horizon)
    ]


def start(sampler, num_images, first_seed=0):
    rng = BatchRng(torch.arange(first_seed, first_seed + num_images))
    context = torch.arange(num_images) % CLASSES
    return sampler.start(context, rng), rng


@pytest.mark.parametrize("needs_features", [False, True])
def test_the_sampler_is_the_closed_loop_of_the_paper(needs_features):
    sampler, network = make(needs_features)
    state, rng = start(sampler, 6)
    grids = [[CODES] * GRID**2 for _ in range(6)]
    for t, params in enumerate(random_params(6)):
        uniform = rng.at(t).uniform(2, GRID**2)
        noise = gumbel(uniform[:, 1])
        state = sampler.advance(state, params, rng)
        for i in range(6):
            tokens = torch.tensor([grids[i], grids[i]])
            (conditional, unconditional), _ = network(tokens, torch.tensor([i % CLASSES, CLASSES]))
            sampled, grids[i] = maskgit_decision(
                grids[i],
                conditional.tolist(),
                unconditional.tolist(),
                CODES,
                {name: values[i].item() for name, values in params.items()},
                uniform[i, 0].tolist(),
                noise[i].tolist(),
            )
            assert state.sampled[i].tolist() == sampled
            assert state.tokens[i].tolist() == grids[i]


def test_predicting_early_for_the_features_changes_no_token():
    states = []
    for needs_features in (False, True):
        sampler, _ = make(needs_features)
        state, rng = start(sampler, 8)
        for params in random_params(8):
            state = sampler.advance(state, params, rng)
        states.append(state)
    assert torch.equal(states[0].sampled, states[1].sampled)


@pytest.mark.parametrize("needs_features", [False, True])
def test_an_episode_calls_the_network_once_a_decision_and_not_after_the_last(needs_features):
    sampler, network = make(needs_features)
    state, rng = start(sampler, 4)
    calls = [len(network.rows)]
    for params in random_params(4):
        sampler.observe(state, ["tokens", "features"])
        state = sampler.advance(state, params, rng)
        calls.append(len(network.rows))
    sampler.decode(state)
    # Without a class the empty grid is the same for all four images: one row.
    assert network.rows == [5] + [8] * (HORIZON - 1)
    assert calls == ([1, 2, 3, 4, 5, 5] if needs_features else [0, 1, 2, 3, 4, 5])
    assert sampler.diagnostics(state)["nfe"].tolist() == [2 * HORIZON] * 4


def test_guidance_costs_nothing_where_every_weight_is_zero():
    sampler, network = make()
    state, rng = start(sampler, 4)
    for t, params in enumerate(random_params(4)):
        weight = params["guidance_weight"] * (t >= 2)
        if t == 3:
            weight[1:] = 0
        state = sampler.advance(state, params | {"guidance_weight": weight}, rng)
    assert network.rows == [4, 4, 8, 8, 8]
    assert sampler.diagnostics(state)["nfe"].tolist() == [8] * 4


def test_a_guidance_weight_of_zero_is_the_conditional_network():
    params = random_params(4)
    states = []
    for needs_features in (False, True):  # the second computes the unconditional half and does not use it
        sampler, _ = make(needs_features)
        state, rng = start(sampler, 4)
        for step in params:
            state = sampler.advance(state, step | {"guidance_weight": torch.zeros(4)}, rng)
        states.append(state)
    assert torch.equal(states[0].sampled, states[1].sampled)


def test_a_token_temperature_of_zero_takes_the_likeliest_token():
    sampler, network = make()
    state, rng = start(sampler, 4)
    params = random_params(4)[0] | {"token_temperature": torch.zeros(4), "guidance_weight": torch.zeros(4)}
    likeliest = network(state.tokens, state.context)[0].argmax(-1)
    assert torch.equal(sampler.advance(state, params, rng).sampled, likeliest)


@pytest.mark.parametrize(("ratio", "open_tokens"), [(0.0, 0), (0.49, 7), (0.5, 8), (1.0, 15)])
def test_the_mask_ratio_counts_the_tokens_that_stay_open(ratio, open_tokens):
    sampler, _ = make()
    state, rng = start(sampler, 4)
    params = random_params(4)[0] | {"mask_ratio": torch.full((4,), ratio, dtype=torch.float64)}
    state = sampler.advance(state, params, rng)
    assert sampler.diagnostics(state)["num_masked"].tolist() == [open_tokens] * 4
    assert sampler.undecided(state).sum((1, 2)).tolist() == [open_tokens] * 4


def test_decided_tokens_never_change():
    sampler, _ = make(horizon=8)
    state, rng = start(sampler, 8)
    for params in random_params(8, horizon=8):
        decided = state.tokens != CODES
        after = sampler.advance(state, params, rng)
        assert torch.equal(after.sampled[decided], state.tokens[decided])
        assert torch.equal(after.tokens[decided], state.tokens[decided])
        state = after


def test_an_old_state_can_be_advanced_again():
    sampler, _ = make()
    state, rng = start(sampler, 4)
    first, other = random_params(4)[:2]
    once = sampler.advance(state, first, rng)
    sampler.advance(once, other, rng)
    again = sampler.advance(state, first, rng)
    assert torch.equal(once.tokens, again.tokens)
    assert torch.equal(once.sampled, again.sampled)


def test_images_are_decoded_from_the_complete_grid():
    sampler, _ = make()
    state, rng = start(sampler, 2)
    state = sampler.advance(state, random_params(2)[0], rng)
    assert torch.equal(sampler.decode(state), state.sampled.view(2, 1, GRID, GRID) / CODES)
