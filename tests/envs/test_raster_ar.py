import dataclasses

import pytest
import torch

from genenv.actions import ScheduleActions
from genenv.closed_loop import closed_loop as plain_loop
from genenv.conditions import Labels
from genenv.envs import raster_ar
from genenv.envs.raster_ar import (
    LLAMAGEN,
    RasterSampler,
    Settings,
    make_sampler,
    num_decisions,
    schedule_params,
)
from genenv.models.digits_vq import DigitsVQ
from genenv.models.llamagen import LlamaGenTransformer
from genenv.rng import BatchRng

GRID, CODES, CLASSES, DIM, HORIZON = 4, 12, 3, 16, 4
LENGTH = GRID**2
OPEN = CODES


def small_transformer():
    torch.manual_seed(0)
    network = LlamaGenTransformer(GRID, CODES, DIM, 2, 2, multiple_of=8, num_classes=CLASSES)
    for parameter in network.parameters():
        parameter.data.mul_(5)  # far from uniform
    return network.eval().requires_grad_(False)


def make(needs_features=False, horizon=HORIZON, has_guidance=True):
    """Returns a sampler and its calls, [(rows, entries)]."""
    network, calls = small_transformer(), []

    def read(tokens, labels, start, cache, rows):
        calls.append((len(tokens), tokens.shape[1] + (labels is not None)))
        return network.read(tokens, labels, start, cache, rows)

    sampler = RasterSampler(
        read,
        network.new_cache,
        lambda tokens: tokens[:, None] / CODES,
        schedule_params(horizon, CODES, has_guidance=has_guidance),
        grid_size=GRID,
        codebook_size=CODES,
        condition=Labels(CLASSES),
        feature_dim=DIM,
        image_shape=(1, GRID, GRID),
        needs_features=needs_features,
    )
    return sampler, calls


def random_params(num_images, horizon=HORIZON, seed=0):
    """Returns a schedule of its own for every image and decision, [{name: (N,)}]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return low + (high - low) * torch.rand(num_images, generator=generator, dtype=torch.float64)

    return [
        {
            "token_temperature": draw(0.3, 2),
            "top_k": draw(1, CODES + 3),
            "top_p": draw(0.3, 1),
            "guidance_weight": draw(0, 3),
        }
        for _ in range(horizon)
    ]


def start(sampler, num_images, first_seed=0):
    rng = BatchRng(torch.arange(first_seed, first_seed + num_images))
    return sampler.start(torch.arange(num_images) % CLASSES, rng), rng


def run(sampler, schedules, **kwargs):
    state, rng = start(sampler, len(schedules[0]["top_k"]), **kwargs)
    for params in schedules:
        state = sampler.advance(state, params, rng)
    return state


def weighted(schedules, weights):
    """Returns the schedules with one guidance weight for all images at each decision."""
    return [
        params | {"guidance_weight": torch.full_like(params["guidance_weight"], weight)}
        for params, weight in zip(schedules, weights, strict=True)
    ]


def closed_loop(network, label, schedule_of_image, uniform):
    """Returns one image's tokens by the plain loop: the whole sequence anew for each token, no cache."""
    tokens = []
    for place in range(LENGTH):
        params = schedule_of_image[place // (LENGTH // len(schedule_of_image))]
        known = torch.tensor([tokens, tokens], dtype=torch.int64)
        conditional, unconditional = network(known, torch.tensor([label, CLASSES]))[0][:, -1]
        scale = 1 + params["guidance_weight"]
        logits = unconditional + scale * (conditional - unconditional)
        order = sorted(range(CODES), key=lambda v: -logits[v].item())[: int(params["top_k"])]
        weights = torch.softmax(logits[order].double() / params["token_temperature"], 0).tolist()
        kept, mass = {}, 0.0
        for v, weight in zip(order, weights, strict=True):
            if kept and mass > params["top_p"]:
                break
            kept[v] = weight
            mass += weight
        threshold, below = uniform[place] * mass, 0.0
        for v in sorted(kept):
            below += kept[v]
            if threshold < below:
                tokens.append(v)
                break
    return tokens


@pytest.mark.parametrize("needs_features", [False, True])
@pytest.mark.parametrize("horizon", [1, 4, 16])
def test_the_sampler_is_the_closed_loop_of_the_paper(needs_features, horizon):
    schedules = random_params(4, horizon)
    state = run(make(needs_features, horizon)[0], schedules)
    rng = BatchRng(torch.arange(4))
    uniform = torch.cat([rng.at(t).uniform(LENGTH // horizon) for t in range(horizon)], dim=1)
    for i in range(4):
        own = [{name: value[i].item() for name, value in params.items()} for params in schedules]
        expected = closed_loop(small_transformer(), i % CLASSES, own, uniform[i].tolist())
        assert state.tokens[i].tolist() == expected


@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (0, 0, 2, 1), (1, 0, 0, 2), (0, 0, 0, 0), (0, 2, 0, 2)])
def test_leaving_out_the_unconditional_half_changes_no_token(weights):
    schedules = weighted(random_params(6), weights)
    lazy, eager = (run(make(needs_features)[0], schedules) for needs_features in (False, True))
    assert torch.equal(lazy.tokens, eager.tokens)


def test_every_token_costs_one_call_and_none_follows_the_last():
    sampler, calls = make()
    state = run(sampler, random_params(3))
    sampler.decode(state)
    sampler.observe(state, ["tokens", "features"])
    assert calls == [(6, 1)] * LENGTH
    assert sampler.diagnostics(state)["nfe"].tolist() == [2 * LENGTH] * 3


def test_the_first_token_of_a_decision_is_predicted_before_it_where_features_are_wanted():
    sampler, calls = make(needs_features=True)
    state, rng = start(sampler, 3)
    counts = [len(calls)]
    for params in random_params(3):
        state = sampler.advance(state, params, rng)
        counts.append(len(calls))
    assert counts == [1, 5, 9, 13, 16]
    assert calls == [(6, 1)] * LENGTH


def test_guidance_costs_nothing_where_every_weight_is_zero():
    sampler, calls = make()
    state = run(sampler, weighted(random_params(3), (0, 0, 0, 0)))
    assert calls == [(3, 1)] * LENGTH
    assert sampler.diagnostics(state)["nfe"].tolist() == [LENGTH] * 3


def test_guidance_that_comes_back_reads_what_was_missed_at_once():
    sampler, calls = make()
    state = run(sampler, weighted(random_params(3), (2, 0, 0, 1)))
    # 4 tokens for both halves; 8 for one; then 8 missed entries and the new one; 3 for both again.
    assert calls == [(6, 1)] * 4 + [(3, 1)] * 8 + [(3, 1), (3, 9)] + [(6, 1)] * 3
    assert sampler.diagnostics(state)["nfe"].tolist() == [24] * 3


@pytest.mark.parametrize("needs_features", [False, True])
def test_without_a_null_class_every_call_and_the_cache_are_of_one_half(needs_features):
    schedules = random_params(3)
    expected = run(make()[0], weighted(schedules, (0, 0, 0, 0)))
    without = [{name: value for name, value in p.items() if name != "guidance_weight"} for p in schedules]
    sampler, calls = make(needs_features, has_guidance=False)
    state = run(sampler, without)
    assert torch.equal(state.tokens, expected.tokens)
    assert calls == [(3, 1)] * LENGTH
    assert state.cache.keys.shape[1] == 3
    assert sampler.diagnostics(state)["nfe"].tolist() == [LENGTH] * 3


@pytest.mark.parametrize("separate", [False, True])
def test_without_a_null_class_the_plain_loop_agrees(separate):
    sampler, _ = make(has_guidance=False)
    context, rng = torch.arange(3), BatchRng(torch.arange(3))
    state = sampler.start(context, rng)
    for t in range(HORIZON):
        static = ScheduleActions(sampler.params)(torch.zeros(3, 3), t)
        state = sampler.advance(state, static, rng)
    assert torch.equal(plain_loop(sampler, context, rng, separate), sampler.decode(state))


@pytest.mark.parametrize("weight", [1.5, -0.5, float("nan")])
def test_guidance_without_a_null_class_is_refused_by_name(weight):
    with pytest.raises(ValueError, match=rf"guidance_weight must be 0 or None .* a null class, got {weight}"):
        schedule_params(4, CODES, Settings(guidance_weight=weight), has_guidance=False)
    for off in (0, 0.0, None):
        params = schedule_params(4, CODES, Settings(guidance_weight=off), has_guidance=False)
        assert [param.name for param in params] == ["token_temperature", "top_k", "top_p"]


@pytest.mark.parametrize(("published", "expected"), [(5, 5), (CODES, CODES), (600, CODES)])
def test_a_published_top_k_keeps_at_most_all_tokens(published, expected):
    params = schedule_params(3, CODES, usual=dataclasses.replace(LLAMAGEN, top_k=published))
    assert params[1].static.tolist() == [expected] * 3


def test_one_guided_image_is_enough_for_the_unconditional_half():
    params = weighted(random_params(3), (0, 0, 0, 0))
    params[0]["guidance_weight"][1] = 1.0
    sampler, calls = make()
    run(sampler, params)
    assert calls == [(6, 1)] * 4 + [(3, 1)] * 12


@pytest.mark.parametrize("needs_features", [False, True])
def test_an_image_does_not_depend_on_its_batch(needs_features):
    schedules = random_params(4)
    together = run(make(needs_features)[0], schedules)
    for i in range(4):
        rng = BatchRng(torch.tensor([i]))
        sampler, _ = make(needs_features)
        state = sampler.start(torch.tensor([i % CLASSES]), rng)
        for params in schedules:
            own = {name: value[i : i + 1] for name, value in params.items()}
            state = sampler.advance(state, own, rng)
        assert torch.equal(state.tokens[0], together.tokens[i])


@pytest.mark.parametrize("needs_features", [False, True])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 1)])
def test_old_states_can_be_advanced_again_in_any_order(needs_features, weights):
    sampler, _ = make(needs_features)
    schedules = weighted(random_params(3), weights)
    others = random_params(3, seed=1)
    fresh = run(sampler, schedules)
    states, rng = [start(sampler, 3)[0]], BatchRng(torch.arange(3))
    for params in schedules:
        states.append(sampler.advance(states[-1], params, rng))
    for t in (3, 1, 0, 2):  # other schedules grow from each state, over the cache that all of them share
        state = states[t]
        for params in others[t:]:
            state = sampler.advance(state, params, rng)
    for t in reversed(range(HORIZON)):
        state = states[t]
        for params in schedules[t:]:
            state = sampler.advance(state, params, rng)
        assert torch.equal(state.tokens, fresh.tokens)
        torch.testing.assert_close(
            sampler.observe(state, ["features"])["features"],
            sampler.observe(fresh, ["features"])["features"],
        )


def test_the_features_are_the_hidden_states_that_predict_each_token_so_far():
    sampler, _ = make(needs_features=True)
    state, rng = start(sampler, 3)
    network = small_transformer()
    for t, params in enumerate([*random_params(3), None]):
        known = 4 * t
        seen = sampler.observe(state, ["features"])["features"]
        assert seen.shape == (3, LENGTH, DIM)
        assert seen.dtype == torch.float32
        expected = network(state.tokens[:, :known], state.context)[1][:, :LENGTH]
        torch.testing.assert_close(seen[:, : known + 1], expected, rtol=0, atol=1e-4)
        assert not seen[:, known + 1 :].any()
        if params is not None:
            state = sampler.advance(state, params, rng)


def test_features_nobody_asked_for_are_zero():
    sampler, _ = make()
    state, _ = start(sampler, 3)
    assert torch.equal(sampler.observe(state, ["features"])["features"], torch.zeros(3, LENGTH, DIM))


def test_tokens_are_decided_in_raster_order_and_stay():
    sampler, _ = make()
    state, rng = start(sampler, 3)
    for t, params in enumerate(random_params(3)):
        tokens = sampler.observe(state, ["tokens"])["tokens"]
        assert (tokens[:, t:] == OPEN).all()
        assert (tokens[:, :t] < CODES).all()
        assert torch.equal(sampler.undecided(state), (tokens == OPEN).float())
        after = sampler.advance(state, params, rng)
        assert torch.equal(after.tokens[:, : 4 * t], state.tokens[:, : 4 * t])
        state = after
    assert not sampler.undecided(state).any()


def test_open_places_show_the_token_decided_last():
    sampler, _ = make()
    state, rng = start(sampler, 3)
    assert torch.equal(sampler.decode(state), torch.zeros(3, 1, GRID, GRID))
    state = sampler.advance(state, random_params(3)[0], rng)
    rows = sampler.decode(state)[:, 0] * CODES
    first = state.tokens[:, :GRID]
    torch.testing.assert_close(rows[:, 0], first.float())
    torch.testing.assert_close(rows[:, 1:], first[:, -1, None, None].expand(3, 3, GRID).float())


@pytest.mark.parametrize(
    "extreme", [{"token_temperature": 0.0}, {"top_k": 0.2}, {"top_k": 1.0}, {"top_p": 0.0}]
)
def test_each_parameter_at_its_low_end_takes_the_likeliest_token(extreme):
    name, value = next(iter(extreme.items()))
    schedules = [
        params | {name: torch.full((3,), value, dtype=torch.float64)}
        for params in weighted(random_params(3), (1, 1, 1, 1))
    ]
    state = run(make()[0], schedules)
    network = small_transformer()
    for place in range(LENGTH):
        conditional = network(state.tokens[:, :place], state.context)[0][:, -1]
        unconditional = network(state.tokens[:, :place], torch.full((3,), CLASSES))[0][:, -1]
        assert torch.equal(state.tokens[:, place], (2 * conditional - unconditional).argmax(-1))


def test_the_filters_follow_the_temperature():
    sampler, _ = make()
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()
    params = {"top_k": torch.tensor([3.0]), "top_p": torch.tensor([0.79])}
    for temperature, kept in ((1.0, 2), (4.0, 3), (0.2, 1)):
        filtered = sampler.filtered(logits, params | {"token_temperature": torch.tensor([temperature])})
        assert filtered.isfinite().sum() == kept


def test_the_hand_crafted_schedule_is_plain_guided_sampling():
    params = schedule_params(4, codebook_size=CODES)
    assert [p.name for p in params] == ["token_temperature", "top_k", "top_p", "guidance_weight"]
    static = ScheduleActions(params)(torch.zeros(2, 4), 0)
    assert {name: value.tolist() for name, value in static.items()} == {
        "token_temperature": [1.0, 1.0],
        "top_k": [CODES, CODES],  # keeps all
        "top_p": [0.999, 0.999],
        "guidance_weight": [1.0, 1.0],
    }
    low, high = (ScheduleActions(params)(torch.full((1, 4), a), 0) for a in (-1.0, 1.0))
    assert low["top_k"] < CODES / 4
    assert high["top_k"] < 2 * CODES
    assert low["top_p"] < 0.96


def test_the_top_k_range_is_inverted_by_its_inverse():
    bijector = schedule_params(1, codebook_size=CODES)[1].bijector
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(bijector.inverse(bijector.forward(x)), x)


@pytest.mark.parametrize(
    ("num_steps", "tokens_per_decision", "expected"),
    [(None, None, 4), (4, None, 4), (None, 2, 8), (8, 2, 8), (1, 16, 1), (None, 1, 16)],
)
def test_the_number_of_decisions_follows_the_tokens_of_each(num_steps, tokens_per_decision, expected):
    assert num_decisions(4, num_steps, tokens_per_decision) == expected


@pytest.mark.parametrize(
    ("num_steps", "tokens_per_decision", "message"),
    [
        (8, None, r"num_steps must be 16 tokens / 4 tokens_per_decision = 4, or None, got 8"),
        (4, 2, r"num_steps must be 16 tokens / 2 tokens_per_decision = 8, or None, got 4"),
        (None, 3, r"tokens_per_decision must divide the 16 tokens of an image, got 3"),
        (None, 0, r"tokens_per_decision must divide the 16 tokens of an image, got 0"),
    ],
)
def test_decisions_that_do_not_fit_the_grid_are_refused(num_steps, tokens_per_decision, message):
    with pytest.raises(ValueError, match=message):
        num_decisions(4, num_steps, tokens_per_decision)


def test_a_sampler_is_made_of_a_backbones_parts(monkeypatch):
    parts = {"llamagen": small_transformer(), "vq": DigitsVQ().eval().requires_grad_(False)}
    monkeypatch.setattr(raster_ar, "load_part", lambda part, backbone: parts[part])
    sampler = make_sampler("digits", None, "cpu", torch.float32, needs_features=True, compile=False)
    assert sampler.horizon == GRID
    assert sampler.num_contexts == CLASSES
    assert sampler.image_shape == (1, 8, 8)
    state = run(sampler, random_params(2))
    assert sampler.decode(state).shape == (2, 1, 8, 8)
    finer = make_sampler("digits", None, "cpu", torch.float32, False, False, tokens_per_decision=1)
    assert finer.horizon == LENGTH
