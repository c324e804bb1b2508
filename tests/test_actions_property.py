"""What every schedule of actions keeps, whatever its parameters."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genenv.actions import ScheduleActions
from genenv.schedules import MARGIN, POSITIVE, UNIT, WIDE_MARGIN, ScheduleParam, scaled_unit

HORIZONS, UNITS = st.integers(1, 4), st.floats(-3, 3)


@st.composite
def params(draw):
    """Returns the parameters of a schedule: ranges, hand-crafted values and spans of any kind."""
    horizon, found = draw(HORIZONS), []
    for i in range(draw(st.integers(1, 4))):
        bijector = draw(st.sampled_from([UNIT, POSITIVE]) | st.floats(1, 1e4).map(scaled_unit))
        before = draw(st.lists(st.floats(-6, 6), min_size=horizon, max_size=horizon))
        static = bijector.forward(torch.tensor(before, dtype=torch.float64))
        ends = [end for end in (bijector.low, bijector.high) if end < float("inf")]
        for t in draw(st.sets(st.integers(0, horizon - 1))):
            static[t] = draw(st.sampled_from(ends))
        margin = draw(st.sampled_from([MARGIN, WIDE_MARGIN]))
        found.append(ScheduleParam(f"p{i}", bijector, static, span=draw(st.floats(0.1, 4)), margin=margin))
    return tuple(found)


@st.composite
def cases(draw):
    """Returns parameters, a decision, and actions (N, A) of a few units."""
    schedule = draw(params())
    row = st.lists(UNITS, min_size=len(schedule), max_size=len(schedule))
    actions = draw(st.lists(row, min_size=1, max_size=3))
    t = draw(st.integers(0, len(schedule[0].static) - 1))
    return schedule, t, torch.tensor(actions, dtype=torch.float64)


def columns(command, schedule):
    return torch.stack([command[param.name] for param in schedule], dim=1)


@given(cases())
def test_encoding_what_an_action_plays_gives_the_action(case):
    schedule, t, actions = case
    for mode in ("residual", "physical"):
        decode = ScheduleActions(schedule, mode)
        played = actions if mode == "residual" else columns(ScheduleActions(schedule)(actions, t), schedule)
        if mode == "physical":
            low, high = torch.tensor([param.limits for param in schedule], dtype=torch.float64).T
            played = played.clamp(low, high)
        shown = columns(decode(played, t), schedule)
        again = decode.encode(shown, t)
        if mode == "residual":  # what stands at an end of its range stays there
            static = torch.stack([param.static[t] for param in schedule])
            ends = static.new_tensor([(p.bijector.low, p.bijector.high) for p in schedule])
            stuck = (static[:, None] == ends).any(1) & (shown == static)
            played = played.masked_fill(stuck, 0)
        torch.testing.assert_close(again, played, rtol=1e-6, atol=1e-6)


def test_an_action_that_leads_out_of_the_range_leaves_a_parameter_at_its_end():
    low, high = (
        ScheduleParam(n, UNIT, torch.tensor([v]).double(), span=1.0, margin=WIDE_MARGIN)
        for n, v in (("l", 0.0), ("h", 1.0))
    )
    played = columns(ScheduleActions([low, high])(torch.tensor([[-1.0, 1.0], [1.0, -1.0]]), 0), [low, high])
    assert played[0].tolist() == [0, 1]
    moved = 1 / (1 + 19 / math.e) - 0.05  # sigmoid(logit(0.05) + 1) - 0.05
    assert played[1].tolist() == pytest.approx([moved, 1 - moved])


@pytest.mark.parametrize("size", [1e-6, 1e-3])
def test_an_action_that_leaves_an_end_of_the_range_starts_there(size):
    weight = ScheduleParam("w", POSITIVE, torch.tensor([0.0]).double(), span=2.0, margin=WIDE_MARGIN)
    played = ScheduleActions([weight])(torch.tensor([[size]]).double(), 0)["w"]
    assert played.item() == pytest.approx(2 * size * (1 - math.exp(-0.05)), rel=0.01)  # softplus' at 0.05


@given(params(), st.integers(1, 3), st.sampled_from([torch.float32, torch.float64]))
def test_zero_and_the_hand_crafted_action_play_the_schedule_bit_for_bit(schedule, number, dtype):
    for mode in ("residual", "physical"):
        decode = ScheduleActions(schedule, mode)
        for t in range(decode.horizon):
            static = torch.stack([param.static[t] for param in schedule]).expand(number, -1)
            assert torch.equal(columns(decode(decode.handcrafted(number, t), t), schedule), static)
            if mode == "residual":
                zero = torch.zeros(number, len(schedule), dtype=dtype)
                assert torch.equal(columns(decode(zero, t), schedule), static)


@given(cases())
def test_an_image_plays_its_own_action_whatever_the_others_do(case):
    schedule, t, actions = case
    decode = ScheduleActions(schedule)
    together = columns(decode(actions, t), schedule)
    alone = torch.cat([columns(decode(row[None], t), schedule) for row in actions])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=0)


@given(cases(), st.floats(0, 2))
def test_more_of_an_action_is_never_less_of_its_parameter(case, more):
    schedule, t, actions = case
    decode = ScheduleActions(schedule)
    less, greater = (columns(decode(a, t), schedule) for a in (actions, actions + more))
    assert (greater >= less - 1e-12 * less.abs()).all()
    for i, param in enumerate(schedule):
        assert (less[:, i] >= param.bijector.low).all()
        assert (greater[:, i] <= param.bijector.high).all()


@given(cases(), st.sampled_from([float("nan"), float("inf"), -float("inf")]), st.data())
def test_a_number_that_is_none_is_refused_with_its_place(case, bad, data):
    schedule, t, actions = case
    env = data.draw(st.integers(0, len(actions) - 1))
    i = data.draw(st.integers(0, len(schedule) - 1))
    actions[env, i] = bad
    for mode in ("residual", "physical"):
        decode = ScheduleActions(schedule, mode)
        sane = decode.handcrafted(len(actions), t).clone().double()
        sane[env, i] = bad
        with pytest.raises(ValueError, match=f"action of env {env}: p{i} must be finite, got {bad}"):
            decode(sane, t)
