import math

import pytest
import torch

from genenv.actions import (
    DEVIATION_LIMIT,
    RESIDUAL_LIMIT,
    DeviationActions,
    LatentActions,
    ScheduleActions,
    TokenActions,
)
from genenv.envs.maskgit import schedule_params
from genenv.rng import BatchRng
from genenv.schedules import POSITIVE, UNIT, ScheduleParam, constant

PARAMS = schedule_params(num_steps=5, guidance_weight=3.0)


def random_actions(num_envs=16, scale=1.0):
    return scale * torch.randn(num_envs, len(PARAMS), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_action_is_the_static_schedule_bit_for_bit(dtype):
    decode = ScheduleActions(PARAMS)
    for t in range(5):
        decoded = decode(torch.zeros(3, len(PARAMS), dtype=dtype), t)
        for param in PARAMS:
            assert decoded[param.name].tolist() == [param.static[t].item()] * 3


def test_an_action_moves_its_own_parameter_and_image_only():
    action = torch.zeros(2, len(PARAMS))
    action[1, 0] = 0.5
    decoded = ScheduleActions(PARAMS)(action, 2)
    moved = {(name, i) for name, v in decoded.items() for i in range(2) if v[i] != v[1 - i]}
    assert {name for name, _ in moved} == {PARAMS[0].name}
    assert decoded[PARAMS[0].name][0] == PARAMS[0].static[2]


def test_a_residual_action_is_added_before_the_bijector():
    unit = ScheduleParam("ratio", UNIT, constant(0.3, 1), span=2.0)
    positive = ScheduleParam("temperature", POSITIVE, constant(1.5, 1), span=0.5)
    decoded = ScheduleActions([unit, positive])(torch.tensor([[0.7, -1.0]]), 0)
    assert decoded["ratio"].item() == pytest.approx(1 / (1 + math.exp(-(math.log(0.3 / 0.7) + 2 * 0.7))))
    assert decoded["temperature"].item() == pytest.approx(
        math.log1p(math.exp(math.log(math.exp(1.5) - 1) - 0.5 * 1.0))
    )


@pytest.mark.parametrize("mode", ["residual", "physical"])
@pytest.mark.parametrize("t", range(5))
def test_decoding_an_encoded_schedule_gives_it_back(mode, t):
    decode = ScheduleActions(PARAMS, mode)
    physical = torch.rand(16, len(PARAMS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    physical = 0.01 + 0.98 * physical
    decoded = decode(decode.encode(physical, t), t)
    torch.testing.assert_close(torch.stack([decoded[p.name] for p in PARAMS], dim=1), physical)


def test_actions_far_outside_the_box_stay_in_the_legal_range():
    decoded = ScheduleActions(PARAMS)(random_actions(scale=200.0), 0)
    for param in PARAMS:
        values = decoded[param.name]
        assert values.isfinite().all()
        assert (values >= param.bijector.low).all()
        assert (values <= param.bijector.high).all()


@pytest.mark.parametrize("mode", ["residual", "physical"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused_with_its_env_and_parameter(mode, bad):
    action = torch.full((4, len(PARAMS)), 0.5)
    action[2, 1] = bad
    with pytest.raises(ValueError, match=f"action of env 2: mask_temperature must be finite, got {bad}"):
        ScheduleActions(PARAMS, mode)(action, 0)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (0, 1.01, r"env 1: mask_ratio must lie in \[0.0, 1.0\], got 1.01"),
        (0, -0.5, r"env 1: mask_ratio must lie in \[0.0, 1.0\], got -0.5"),
        (3, -0.25, r"env 1: guidance_weight must lie in \[0.0, 24.006\], got -0.25"),
    ],
)
def test_a_physical_action_outside_the_legal_range_is_refused(column, value, message):
    action = torch.full((2, len(PARAMS)), 0.5, dtype=torch.float64)
    action[1, column] = value
    with pytest.raises(ValueError, match=message):
        ScheduleActions(PARAMS, "physical")(action, 0)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_a_physical_action_may_sit_on_a_bound(bound):
    action = torch.full((1, len(PARAMS)), bound)
    assert ScheduleActions(PARAMS, "physical")(action, 0)["mask_ratio"].item() == bound


def test_an_unknown_action_mode_is_refused():
    with pytest.raises(ValueError, match="action_mode must be 'residual' or 'physical', got 'absolute'"):
        ScheduleActions(PARAMS, "absolute")


@pytest.mark.parametrize("value", [1000.5, -1e21, 3e38])
def test_a_residual_action_beyond_a_thousand_units_is_refused_with_its_env(value):
    action = torch.zeros(3, len(PARAMS))
    action[1, 3] = value
    with pytest.raises(
        ValueError, match=r"action of env 1: guidance_weight must lie in \[-1000.0, 1000.0\], got"
    ):
        ScheduleActions(PARAMS)(action, 0)
    action[1, 3] = 1000.0 if value > 0 else -1000.0
    assert ScheduleActions(PARAMS)(action, 0)["guidance_weight"].isfinite().all()


@pytest.mark.parametrize("mode", ["residual", "physical"])
def test_there_is_an_action_for_the_hand_crafted_schedule(mode):
    actions = ScheduleActions(PARAMS, mode)
    for t in range(5):
        found = actions(actions.handcrafted(2, t), t)
        assert {name: value.tolist() for name, value in found.items()} == {
            param.name: [param.static[t].item()] * 2 for param in PARAMS
        }


def test_a_schedule_is_reported_under_its_names():
    actions = ScheduleActions(PARAMS)
    reported = actions.report(actions(random_actions(3), 1))
    assert list(reported) == [f"schedule/{param.name}" for param in PARAMS]
    assert all(value.shape == (3,) and value.dtype == torch.float32 for value in reported.values())


def test_a_token_is_a_choice_and_comes_out_as_it_went_in():
    actions = TokenActions(7)
    for dtype in (torch.uint8, torch.int32):
        assert actions(torch.tensor([1, 0], dtype=dtype), 0).dtype == torch.int64
    assert (actions.field.shape, actions.field.low, actions.field.high) == ((), 0, 6)
    token = torch.tensor([0, 6, 3])
    assert torch.equal(actions(token, 4), token)
    assert torch.equal(actions.report(token)["token"], token)


@pytest.mark.parametrize("bad", [-1, 7, 10**12])
def test_a_token_that_does_not_exist_is_refused(bad):
    with pytest.raises(ValueError, match=rf"action of env 2: the token must lie in \[0, 6\], got {bad}"):
        TokenActions(7)(torch.tensor([0, 1, bad]), 0)


def test_a_latent_is_taken_within_its_limit():
    actions, latents = LatentActions((2, 3, 3), limit=5.0), torch.randn(4, 2, 3, 3).clamp(-5, 5)
    assert torch.equal(actions(latents, 0), latents)
    torch.testing.assert_close(
        actions.report(latents)["latent_norm"], latents.square().mean((1, 2, 3)).sqrt()
    )


@pytest.mark.parametrize("bad", [5.5, -math.inf, math.nan])
def test_a_latent_beyond_its_limit_is_refused(bad):
    latents = torch.zeros(4, 2, 3, 3)
    latents[3, 1, 0, 2] = bad
    with pytest.raises(ValueError, match=rf"action of env 3: latents must lie in \[-5, 5\], got {bad}"):
        LatentActions((2, 3, 3), limit=5.0)(latents, 0)


def test_a_deviation_may_be_larger_than_its_space():
    actions, value = DeviationActions((2, 3, 3)), 3 * torch.randn(4, 2, 3, 3, dtype=torch.float64)
    assert (actions.field.low, actions.field.high) == (-DEVIATION_LIMIT, DEVIATION_LIMIT)
    value[0, 0, 0, 0] = -RESIDUAL_LIMIT
    command = actions(value, 0)
    assert torch.equal(command.value, value.float())
    torch.testing.assert_close(
        actions.report(command)["deviation_norm"], value.float().square().mean((1, 2, 3)).sqrt()
    )


@pytest.mark.parametrize("bad", [1001.0, -math.inf, math.nan])
def test_a_deviation_that_is_not_legal_is_refused(bad):
    value = torch.zeros(4, 2, 3, 3)
    value[1, 0, 2, 2] = bad
    with pytest.raises(ValueError, match=rf"env 1: deviations must lie in \[-1000, 1000\], got {bad}"):
        DeviationActions((2, 3, 3))(value, 0)


@pytest.mark.parametrize("mode", ["residual", "physical"])
def test_a_schedule_is_hand_crafted_where_no_agent_acts(mode):
    actions, rng = ScheduleActions(PARAMS, mode), BatchRng(torch.arange(3))
    assert actions.needs == ()
    for t in range(5):
        command = actions(actions.default({}, rng.at(t)), t)
        for param in PARAMS:
            assert command[param.name].tolist() == [param.static[t].item()] * 3


def test_tokens_are_the_generators_where_no_agent_acts():
    actions, rng = TokenActions(3), BatchRng(torch.arange(20_000))
    logits = torch.tensor([0.7, 0.0, 0.3]).log()
    observation = dict.fromkeys(actions.needs, logits.expand(20_000, 3))
    tokens = actions.default(observation, rng)
    shares = tokens.bincount(minlength=3) / 20_000
    assert shares.tolist() == pytest.approx([0.7, 0.0, 0.3], abs=0.015)
    assert torch.equal(
        actions.default({"logits": logits.expand(2, 3)}, BatchRng(torch.tensor([5, 3]))), tokens[[5, 3]]
    )
    assert not torch.equal(actions.default(observation, rng.at(1)), tokens)


def test_latents_are_the_generators_where_no_agent_acts():
    actions, rng = LatentActions((2, 3, 3), limit=100.0), BatchRng(torch.arange(5000))
    mean, std = torch.arange(18.0).view(2, 3, 3), torch.tensor([0.5, 4.0]).repeat(2500)
    latents = actions.default({"mean": mean.expand(5000, 2, 3, 3), "std": std[:, None]}, rng)
    assert actions.needs == ("mean", "std")
    assert latents.dtype == torch.float32
    for first in (0, 1):
        each = latents[first::2]
        torch.testing.assert_close(each.mean(0), mean, atol=5 * std[first].item() / 50, rtol=0)
        torch.testing.assert_close(each.std(0), std[first].expand(2, 3, 3), rtol=0.08, atol=0)
    few = actions.default({"mean": mean.expand(2, 2, 3, 3), "std": std[:2, None]}, BatchRng(torch.arange(2)))
    assert torch.equal(few, latents[:2])


def test_deviations_are_the_generators_where_no_agent_acts():
    actions, rng = DeviationActions((2, 3, 3)), BatchRng(torch.arange(5000))
    assert actions.needs == ()
    latents = LatentActions((2, 3, 3), limit=100.0)
    unit = {"mean": torch.zeros(5000, 2, 3, 3), "std": torch.ones(5000, 1)}
    for t in (0, 3):
        assert torch.equal(actions.default({}, rng.at(t)), latents.default(unit, rng.at(t)))
