import math

import pytest
import torch

from genenv.envs.maskgit import schedule
from genenv.schedules import (
    POSITIVE,
    UNIT,
    ActionDecoder,
    ScheduleParam,
    constant,
    cosine,
    linear_decay,
    linear_rise,
)

PARAMS = schedule(num_steps=5, guidance_weight=3.0)


def random_actions(num_envs=16, scale=1.0):
    return scale * torch.randn(num_envs, len(PARAMS), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_zero_action_is_the_static_schedule_bit_for_bit(dtype):
    decode = ActionDecoder(PARAMS)
    for t in range(5):
        decoded = decode(torch.zeros(3, len(PARAMS), dtype=dtype), t)
        for param in PARAMS:
            assert decoded[param.name].tolist() == [param.static[t].item()] * 3


def test_an_action_moves_its_own_parameter_and_image_only():
    action = torch.zeros(2, len(PARAMS))
    action[1, 0] = 0.5
    decoded = ActionDecoder(PARAMS)(action, 2)
    moved = {(name, i) for name, v in decoded.items() for i in range(2) if v[i] != v[1 - i]}
    assert {name for name, _ in moved} == {PARAMS[0].name}
    assert decoded[PARAMS[0].name][0] == PARAMS[0].static[2]


def test_a_residual_action_is_added_before_the_bijector():
    unit = ScheduleParam("ratio", UNIT, constant(0.3, 1), span=2.0)
    positive = ScheduleParam("temperature", POSITIVE, constant(1.5, 1), span=0.5)
    decoded = ActionDecoder([unit, positive])(torch.tensor([[0.7, -1.0]]), 0)
    assert decoded["ratio"].item() == pytest.approx(1 / (1 + math.exp(-(math.log(0.3 / 0.7) + 2 * 0.7))))
    assert decoded["temperature"].item() == pytest.approx(
        math.log1p(math.exp(math.log(math.exp(1.5) - 1) - 0.5 * 1.0))
    )


@pytest.mark.parametrize("mode", ["residual", "physical"])
@pytest.mark.parametrize("t", range(5))
def test_decoding_an_encoded_schedule_gives_it_back(mode, t):
    decode = ActionDecoder(PARAMS, mode)
    physical = torch.rand(16, len(PARAMS), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    physical = 0.01 + 0.98 * physical
    decoded = decode(decode.encode(physical, t), t)
    torch.testing.assert_close(torch.stack([decoded[p.name] for p in PARAMS], dim=1), physical)


def test_actions_far_outside_the_box_stay_in_the_legal_range():
    decoded = ActionDecoder(PARAMS)(random_actions(scale=1e4), 0)
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
        ActionDecoder(PARAMS, mode)(action, 0)


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
        ActionDecoder(PARAMS, "physical")(action, 0)


@pytest.mark.parametrize("bound", [0.0, 1.0])
def test_a_physical_action_may_sit_on_a_bound(bound):
    action = torch.full((1, len(PARAMS)), bound)
    assert ActionDecoder(PARAMS, "physical")(action, 0)["mask_ratio"].item() == bound


def test_an_unknown_action_mode_is_refused():
    with pytest.raises(ValueError, match="action_mode must be 'residual' or 'physical', got 'absolute'"):
        ActionDecoder(PARAMS, "absolute")


@pytest.mark.parametrize(
    ("bijector", "value"), [(UNIT, 1.0), (UNIT, -0.1), (POSITIVE, 0.0), (POSITIVE, math.nan)]
)
def test_a_static_schedule_outside_the_legal_range_is_refused(bijector, value):
    with pytest.raises(ValueError, match="knob: the static schedule must lie inside"):
        ScheduleParam("knob", bijector, constant(value, 3))


def test_limits_of_physical_actions_hold_the_static_schedule():
    assert ScheduleParam("ratio", UNIT, constant(0.5, 2)).limits == (0.0, 1.0)
    assert ScheduleParam("weight", POSITIVE, constant(3.0, 2)).limits == (0.0, 30.0)
    assert ScheduleParam("temperature", POSITIVE, constant(0.2, 2)).limits == (0.0, 10.0)


@pytest.mark.parametrize(
    ("values", "formula"),
    [
        (cosine(8), lambda t: math.cos(math.pi / 2 * (t + 1 - 1e-3) / 8)),
        (linear_decay(8), lambda t: 1 - (t + 1 - 1e-3) / 8),
        (linear_rise(2.5, 8), lambda t: 2.5 * (t + 1e-3) / 8),
        (constant(0.7, 8), lambda t: 0.7),
    ],
    ids=["cosine", "linear_decay", "linear_rise", "constant"],
)
def test_schedules_are_their_formulas(values, formula):
    assert values.tolist() == pytest.approx([formula(t) for t in range(8)])
