from pathlib import Path

import pytest
import torch
from oracles import var_token

from genenv.actions import ScheduleActions
from genenv.envs import var
from genenv.envs.var import TOP_K_RULES, VARSampler, resize, schedule_params
from genenv.models.digits_msvq import DigitsMSVQ
from genenv.models.var import VARTransformer
from genenv.parity.fixture import Fixture
from genenv.parity.var import check_var
from genenv.rng import BatchRng

SIDES, CODES, CLASSES, HORIZON = (1, 2, 3, 4), 12, 3, 4
OFFSETS = (0, 1, 5, 14, 30)
PARITY = Path(__file__).parents[3] / "shared" / "parity" / "var"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason="the reference vectors are not beside this checkout"
)


def make(needs_features=False, **kwargs):
    """Returns a sampler of random networks, and the list of the (sequences, positions) of every network call."""
    torch.manual_seed(0)
    transformer = VARTransformer(SIDES, CODES, 4, 16, 2, 2, num_classes=CLASSES)
    for parameter in transformer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    tokenizer = DigitsMSVQ(width=4, z_channels=4, vocab_size=CODES)
    for network in (transformer, tokenizer):
        network.eval().requires_grad_(False)
    calls = []
    transformer.register_forward_hook(
        lambda module, inputs, outputs: calls.append(tuple(outputs[0].shape[:2]))
    )
    params = schedule_params(HORIZON, CODES)
    return VARSampler(transformer, tokenizer, params, needs_features=needs_features, **kwargs), calls


def random_params(num_images, seed=0):
    """Returns a schedule of its own for every image and decision, [{name: (N,)}]."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high):
        return low + (high - low) * torch.rand(num_images, generator=generator, dtype=torch.float64)

    return [
        {
            "guidance_weight": draw(0, 3),
            "top_k": draw(2, CODES),
            "top_p": draw(0.5, 1),
            "token_temperature": draw(0.3, 2),
        }
        for _ in range(HORIZON)
    ]


def start(sampler, num_images, first_seed=0):
    rng = BatchRng(torch.arange(first_seed, first_seed + num_images))
    return sampler.start(torch.arange(first_seed, first_seed + num_images) % CLASSES, rng), rng


def rollout(sampler, params, num_images=4, first_seed=0):
    """Returns the states of an episode and the tokens (N, L) of all its scales."""
    state, rng = start(sampler, num_images, first_seed)
    states, tokens = [state], []
    for step in params:
        state = sampler.advance(state, step, rng)
        states.append(state)
        tokens.append(state.tokens)
    return states, torch.cat(tokens, dim=1)


@pytest.mark.parametrize(
    ("needs_features", "rule"), [(False, "monotone"), (True, "monotone"), (False, "released")]
)
def test_the_sampler_is_the_closed_loop_of_the_paper(needs_features, rule):
    sampler, _ = make(needs_features, top_k_rule=rule)
    params = random_params(4)
    params[1]["top_k"][:2] = 0.6
    states, tokens = rollout(sampler, params)
    maps = sampler.quantiser.maps(sampler.quantiser.accumulate(tokens))
    rng = BatchRng(torch.arange(4))
    for i in range(4):
        conditional, unconditional = (
            sampler.transformer(maps[i : i + 1], torch.tensor([label]))[0][0].tolist()
            for label in (i % CLASSES, CLASSES)
        )
        for t in range(HORIZON):
            uniform = rng.at(t).uniform(SIDES[t] ** 2)[i].tolist()
            own = {name: values[i].item() for name, values in params[t].items()}
            expected = [
                var_token(
                    conditional[k], unconditional[k], t / (HORIZON - 1), own, uniform[k - OFFSETS[t]], rule
                )
                for k in range(OFFSETS[t], OFFSETS[t + 1])
            ]
            assert tokens[i, OFFSETS[t] : OFFSETS[t + 1]].tolist() == expected
    *_, latents = sampler.quantiser.accumulate(tokens)
    torch.testing.assert_close(states[-1].latents, latents)
    assert torch.equal(sampler.decode(states[-1]), sampler.tokenizer.decode(states[-1].latents))


def test_predicting_early_for_the_features_changes_no_token():
    params = random_params(4)
    (lazy, _), (eager, _) = make(), make(needs_features=True)
    assert torch.equal(rollout(lazy, params)[1], rollout(eager, params)[1])


@pytest.mark.parametrize("needs_features", [False, True])
def test_an_image_does_not_depend_on_its_batch(needs_features):
    sampler, _ = make(needs_features)
    params = random_params(4)
    _, together = rollout(sampler, params)
    for i in range(4):
        own = [{name: values[i : i + 1] for name, values in step.items()} for step in params]
        assert torch.equal(rollout(sampler, own, 1, first_seed=i)[1][0], together[i])


@pytest.mark.parametrize("needs_features", [False, True])
def test_an_episode_calls_the_network_once_a_scale_and_not_after_the_last(needs_features):
    sampler, calls = make(needs_features)
    states, _ = rollout(sampler, random_params(4))
    for state in states:
        sampler.observe(state, ["latents", "features"])
        sampler.decode(state)
    assert calls == [(8, side**2) for side in SIDES]
    nfe = [sampler.diagnostics(state)["nfe"].tolist() for state in states]
    assert nfe == [[2 * count] * 4 for count in ([1, 2, 3, 4, 4] if needs_features else range(5))]


def test_guidance_costs_nothing_where_every_weight_is_zero():
    sampler, calls = make()
    params = [step | {"guidance_weight": torch.zeros(4)} for step in random_params(4)]
    states, tokens = rollout(sampler, params)
    assert calls == [(4, side**2) for side in SIDES]
    assert states[-1].calls.tolist() == [HORIZON] * 4
    assert torch.equal(tokens, rollout(make(needs_features=True)[0], params)[1])


@pytest.mark.parametrize(
    ("guided", "expected", "nfe"),
    [
        ((0, 0, 1, 1), [(4, 1), (4, 4), (4, 9), (4, 14), (8, 16)], 8),
        ((1, 0, 1, 0), [(8, 1), (4, 4), (4, 9), (4, 13), (4, 16)], 7),
        ((0, 0, 0, 1), [(4, 1), (4, 4), (4, 9), (4, 16), (4, 30)], 8),
    ],
)
def test_the_unconditional_half_catches_up_on_the_scales_it_missed(guided, expected, nfe):
    params = random_params(4)
    for step, wanted in zip(params, guided, strict=True):
        step["guidance_weight"] *= wanted
        step["guidance_weight"][1] = 0
    sampler, calls = make()
    states, tokens = rollout(sampler, params)
    assert calls == expected
    assert states[-1].calls.tolist() == [nfe] * 4
    assert torch.equal(tokens, rollout(make(needs_features=True)[0], params)[1])


@pytest.mark.parametrize("needs_features", [False, True])
@pytest.mark.parametrize("guided", [(1, 1, 1, 1), (0, 0, 1, 1), (1, 0, 0, 1)])
def test_an_old_state_can_be_advanced_again(needs_features, guided):
    sampler, _ = make(needs_features)
    params, others = random_params(4), random_params(4, seed=1)
    for step, other, wanted in zip(params, others, guided, strict=True):
        step["guidance_weight"] *= wanted
        other["guidance_weight"] *= 1 - wanted
    states, tokens = rollout(sampler, params)
    _, rng = start(sampler, 4)
    for t in range(HORIZON):
        state = states[t]
        for other in others[t:]:  # another future from here
            state = sampler.advance(state, other, rng)
        for begin in (t + 1, t):  # the old one goes on, and is repeated
            state, again = states[begin], tokens[:, : OFFSETS[begin]]
            for step in params[begin:]:
                state = sampler.advance(state, step, rng)
                again = torch.cat([again, state.tokens], dim=1)
            assert torch.equal(again, tokens)
            assert torch.equal(state.latents, states[-1].latents)


def test_the_first_scale_is_not_guided():
    sampler, _ = make()
    state, rng = start(sampler, 4)
    step = random_params(4)[0]
    strong = sampler.advance(state, step | {"guidance_weight": torch.full((4,), 50.0)}, rng)
    without = sampler.advance(state, step | {"guidance_weight": torch.zeros(4)}, rng)
    assert torch.equal(strong.tokens, without.tokens)


@pytest.mark.parametrize(
    "strict", [{"top_k": 1.9}, {"top_p": 0.0}, {"token_temperature": 0.0}], ids=lambda s: next(iter(s))
)
def test_the_strictest_setting_of_each_parameter_takes_the_likeliest_token(strict):
    sampler, _ = make(needs_features=True)
    state, rng = start(sampler, 4)
    for step in random_params(4):
        likeliest = sampler.guided_logits(state, step["guidance_weight"]).argmax(-1)
        values = {name: torch.full((4,), value) for name, value in strict.items()}
        state = sampler.advance(state, step | values, rng)
        assert torch.equal(state.tokens, likeliest)


def test_the_loosest_setting_keeps_every_token():
    sampler, _ = make()
    state, rng = start(sampler, 2000)
    params = {"guidance_weight": 0.0, "top_k": CODES, "top_p": 1.0, "token_temperature": 100.0}
    state = sampler.advance(state, {name: torch.full((2000,), value) for name, value in params.items()}, rng)
    assert state.tokens.unique().tolist() == list(range(CODES))


@pytest.mark.parametrize("top_k", [0.0, 0.4, 0.999])
def test_a_top_k_below_1_takes_the_likeliest_token_or_as_released_filters_nothing(top_k):
    step = {"guidance_weight": 0.0, "top_k": top_k, "top_p": 1.0, "token_temperature": 100.0}
    step = {name: torch.full((50,), value) for name, value in step.items()}
    drawn = {}
    for rule in TOP_K_RULES:
        sampler, _ = make(needs_features=True, top_k_rule=rule)
        state, rng = start(sampler, 50)
        likeliest = sampler.guided_logits(state, step["guidance_weight"]).argmax(-1)
        drawn[rule] = sampler.advance(state, step, rng).tokens
        unfiltered = sampler.advance(state, step | {"top_k": torch.full((50,), float(CODES))}, rng).tokens
    assert torch.equal(drawn["monotone"], likeliest)
    assert torch.equal(drawn["released"], unfiltered)
    assert not torch.equal(likeliest, unfiltered)


def test_an_unknown_top_k_rule_is_refused():
    with pytest.raises(ValueError, match="top_k_rule must be one of monotone, released, got 'none'"):
        make(top_k_rule="none")


def test_the_observation_is_the_accumulated_map_and_the_hidden_map_at_its_size():
    sampler, _ = make(needs_features=True)
    states, tokens = rollout(sampler, random_params(4))
    maps = sampler.quantiser.maps(sampler.quantiser.accumulate(tokens))
    _, hidden = sampler.transformer(maps, torch.arange(4) % CLASSES)
    for t, state in enumerate(states):
        fields = sampler.observe(state, ["latents", "features"])
        assert torch.equal(fields["latents"], state.latents)
        for name, value in fields.items():
            assert value.shape == (4, *sampler.fields[name].shape)
            assert value.dtype == torch.float32
        if t < HORIZON:
            expected = resize(hidden[:, OFFSETS[t] : OFFSETS[t + 1]], SIDES[-1])
            torch.testing.assert_close(fields["features"], expected, rtol=1e-4, atol=1e-4)
        else:
            assert not fields["features"].any()
    assert sampler.observe(states[0], ["latents"]).keys() == {"latents"}


def test_resizing_keeps_a_map_of_the_wanted_size_and_repeats_a_single_place():
    hidden = torch.randn(2, 16, 3)
    torch.testing.assert_close(resize(hidden, 4), hidden)
    torch.testing.assert_close(resize(hidden[:, :1], 4), hidden[:, :1].expand(-1, 16, -1))


def test_every_state_has_an_image_and_a_share_of_scales_to_come():
    sampler, _ = make()
    states, _ = rollout(sampler, random_params(4))
    for t, state in enumerate(states):
        images = sampler.decode(state)
        assert images.shape == (4, *sampler.image_shape)
        assert images.dtype == torch.float32
        torch.testing.assert_close(sampler.undecided(state), torch.full((4, 4, 4), 1 - t / HORIZON))


def test_an_action_of_zero_is_the_hand_crafted_schedule():
    decoder = ScheduleActions(schedule_params(10, 4096))
    for t in range(10):
        values = {name: value.tolist() for name, value in decoder(torch.zeros(2, 4), t).items()}
        assert values == {
            "guidance_weight": [1.5, 1.5],
            "top_k": [900.0, 900.0],
            "top_p": [0.96, 0.96],
            "token_temperature": [1.0, 1.0],
        }


def test_no_action_leaves_the_range_of_a_parameter():
    decoder = ScheduleActions(schedule_params(4, CODES))
    for value in (-30.0, 30.0):
        values = decoder(torch.full((1, 4), value), 0)
        assert 0 <= values["top_k"].item() <= CODES
        assert 0 <= values["top_p"].item() <= 1
        assert values["guidance_weight"].item() >= 0
        assert values["token_temperature"].item() >= 0


@pytest.mark.parametrize("num_steps", [None, 4])
def test_the_number_of_decisions_is_that_of_the_scales(monkeypatch, num_steps):
    sampler, _ = make()
    parts = {"var": sampler.transformer, "msvq": sampler.tokenizer}
    monkeypatch.setattr(var, "load_part", lambda part, backbone: parts[part])
    arguments = {"device": "cpu", "dtype": torch.float32, "needs_features": False, "compile": False}
    arguments["schedule"] = "published"
    made = var.make_sampler("digits", num_steps, **arguments)
    assert (made.horizon, made.num_contexts, made.image_shape) == (4, CLASSES, (1, 8, 8))
    with pytest.raises(ValueError, match=r"num_steps must be 4, the scales of backbone 'digits', .* got 5"):
        var.make_sampler("digits", 5, **arguments)


@needs_parity
def test_the_rollouts_of_the_reference_are_reproduced():
    assert [result for result in check_var(Fixture(PARITY)) if not result.ok] == []


def test_a_single_scale_is_not_guided():
    torch.manual_seed(0)
    transformer = VARTransformer((2,), CODES, 4, 16, 2, 2, num_classes=CLASSES).eval().requires_grad_(False)
    tokenizer = DigitsMSVQ(width=4, z_channels=4, vocab_size=CODES).eval().requires_grad_(False)
    tokenizer.quantize.patch_nums = (2,)
    sampler = VARSampler(transformer, tokenizer, schedule_params(1, CODES), needs_features=True)
    state, _ = start(sampler, 3)
    guided = sampler.guided_logits(state, torch.full((3,), 2.0))
    assert torch.equal(guided, state.prediction.conditional)
