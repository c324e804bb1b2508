import math

import pytest
import torch

from genenv.schedules import (
    MARGIN,
    POSITIVE,
    REAL,
    UNIT,
    WIDE_MARGIN,
    ScheduleParam,
    constant,
    cosine,
    linear_decay,
    linear_rise,
    residual_margins,
    scaled_unit,
)


@pytest.mark.parametrize(
    ("bijector", "value"),
    [
        (UNIT, 1.001),
        (UNIT, -0.1),
        (POSITIVE, -1e-9),
        (POSITIVE, math.nan),
        (POSITIVE, math.inf),
        (REAL, -math.inf),
        (scaled_unit(7.0), 7.5),
    ],
)
def test_a_static_schedule_outside_the_legal_range_is_refused(bijector, value):
    with pytest.raises(ValueError, match=r"knob: the static schedule must be finite and lie in \["):
        ScheduleParam("knob", bijector, constant(value, 3))


@pytest.mark.parametrize(
    ("bijector", "value", "inside"),
    [
        (UNIT, 0.0, 0.05),
        (UNIT, 1.0, 0.95),
        (UNIT, 1e-9, 1e-9),
        (POSITIVE, 0.0, 0.05),
        (POSITIVE, 3.0, 3.0),
        (REAL, 0.0, 0.0),
        (scaled_unit(4096.0), 0.0, 4096 * 0.05),
        (scaled_unit(4096.0), 4096.0, 4096 * 0.95),
    ],
)
def test_residual_actions_find_a_schedule_at_an_end_of_its_range_inside(bijector, value, inside):
    param = ScheduleParam("knob", bijector, torch.tensor([value, 0.25], dtype=torch.float64))
    narrow = [value + (inside - value) * MARGIN / WIDE_MARGIN, 0.25]
    assert param.inside.tolist() == pytest.approx(narrow, rel=1e-12)
    (param,) = residual_margins([param], None)
    assert param.inside.tolist() == pytest.approx([inside, 0.25], rel=1e-12)
    assert bijector.inverse(param.inside).isfinite().all()


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
