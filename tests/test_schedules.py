import math

import pytest

from genenv.schedules import (
    POSITIVE,
    REAL,
    UNIT,
    ScheduleParam,
    constant,
    cosine,
    linear_decay,
    linear_rise,
)


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
    assert ScheduleParam("speed", REAL, constant(1.0, 2)).limits == (-10.0, 10.0)
    assert ScheduleParam("speed", REAL, constant(-4.0, 2)).limits == (-40.0, 40.0)


@pytest.mark.parametrize(
    ("values", "formula"),
    [
        (cosine(8), lambda t: math.cos(math.pi / 2 * (t + 1 - 1e-3) / 8)),
        (linear_decay(2.5, 8), lambda t: 2.5 * (1 - (t + 1 - 1e-3) / 8)),
        (linear_rise(2.5, 8), lambda t: 2.5 * (t + 1e-3) / 8),
        (constant(0.7, 8), lambda t: 0.7),
    ],
    ids=["cosine", "linear_decay", "linear_rise", "constant"],
)
def test_schedules_are_their_formulas(values, formula):
    assert values.tolist() == pytest.approx([formula(t) for t in range(8)])
