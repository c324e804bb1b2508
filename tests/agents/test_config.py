"""Ranges of a configuration's fields, and its way to JSON and to the command line."""

import dataclasses
import json
import math
import shlex
from pathlib import Path
from typing import Annotated, ClassVar

import pytest
import tyro

from agents.config import as_json, command, from_json
from genenv.ranges import ABOVE_ZERO, AT_LEAST_1, FRACTION, NOT_NEGATIVE, Range, Steps, check, value_at


@dataclasses.dataclass(frozen=True)
class Part:
    """What belongs together."""

    width: int = 2
    ends: tuple[float, float] = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every kind of field."""

    agent: ClassVar[str] = "one"
    rate: Annotated[Steps, ABOVE_ZERO] = ((0, 0.4), (60, 0.2))
    number: Annotated[int, AT_LEAST_1] = 3
    seed: Annotated[int, NOT_NEGATIVE] = 0
    decay: Annotated[float, FRACTION] = 0.5
    grid: tuple[float, ...] = (0.0, 1.0)
    share: Annotated[float, FRACTION] | None = None
    name: str | None = None
    title: str = "x"
    fresh: bool = False
    part: Part = Part(width=3)

    def __post_init__(self):
        check(self)


OTHERS = [
    Config(),
    Config(
        rate=((0, 1.0),), number=7, seed=2**70, decay=0.0, grid=(0.25,), share=0.25, name="a b", fresh=True
    ),
    Config(rate=((0, 1e-5), (1, 2.0), (9, 3.5)), title="-5 'quoted'", name=""),
    Config(part=Part(width=5, ends=(0.5, 3.0)), number=4),
    Config(part=Part()),
]


@pytest.mark.parametrize("config", OTHERS)
def test_a_configuration_comes_back_from_json_and_from_its_command_line(config, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(as_json(config))
    assert from_json(Config, path) == config
    words = shlex.split(command(Config.agent, config, Path("runs/x y")))
    assert words[:3] == ["python", "-m", "agents.one"]
    assert words[-2:] == ["--out", "runs/x y"]
    assert tyro.cli(tyro.conf.OmitArgPrefixes[Config], args=words[3:-2]) == config


@pytest.mark.parametrize(
    ("out", "told"), [("-x", "./-x"), ("None", "./None"), ("--", "./--"), ("/a/-b", "/a/-b")]
)
def test_a_folder_is_not_taken_for_an_option(out, told):
    assert shlex.split(command(Config.agent, Config(), Path(out)))[-2:] == ["--out", told]
    assert Path(told) == Path(out)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("number", 0, "number must be finite and at least 1, got 0"),
        ("seed", -1, "seed must be finite and at least 0, got -1"),
        ("decay", math.nan, r"decay must be in \[0, 1\), got nan"),
        ("share", math.nan, r"share must be in \[0, 1\), got nan"),
        ("decay", 1.0, r"decay must be in \[0, 1\), got 1"),
        ("rate", ((0, math.inf),), "rate must be finite and above 0, got inf"),
        ("rate", ((0, 1.0), (4, -2.0)), "rate must be finite and above 0, got -2"),
        ("rate", (), "rate must start at iteration 0"),
        ("rate", ((1, 1.0),), "rate must start at iteration 0"),
        ("rate", ((0, 1.0), (5, 1.0), (5, 2.0)), "its iterations must rise"),
        ("rate", ((0, 1.0), (60, 2.0), (30, 3.0)), "its iterations must rise"),
    ],
)
def test_a_number_outside_its_range_is_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        Config(**{field: value})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1e-9])
def test_no_range_holds_what_is_not_finite_or_too_small(value):
    assert not any(value in allowed for allowed in (ABOVE_ZERO, NOT_NEGATIVE, FRACTION, Range(4, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"number": 2.5}, r"config\.json: number must be int, got 2\.5"),
        ({"number": True}, "number must be int, got True"),
        ({"rate": 5}, r"rate must be tuple\[tuple\[int, float\], \.\.\.\], got 5"),
        ({"rate": [[0]]}, r"rate must be tuple\[int, float\], got \[0\]"),
        ({"rate": [[0, "a"]]}, "rate must be float, got 'a'"),
        ({"decay": 10**400}, "config.json: decay must be finite, got inf"),
        ({"rate": [[0, math.nan]]}, "config.json: rate must be finite, got nan"),
        ({"name": 3}, "name must be str, got 3"),
        ({"decay": -1}, r"config\.json: decay must be in \[0, 1\), got -1"),
        ({"surprise": 1}, "has an unknown field surprise"),
    ],
)
def test_an_edited_file_is_answered_with_file_and_field(tmp_path, change, message):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(as_json(Config())) | change))
    with pytest.raises(ValueError, match=message):
        from_json(Config, path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rate": [[0, 0.4]', r"config\.json is not readable JSON"),
        ("[1]", "must hold a JSON object, got list"),
        ('{"number": 1}', "has no field rate, seed, decay"),
        ("", "is not readable JSON"),
        ('{"number": 1' + 5000 * "0" + "}", "config.json: number must be finite, got inf"),
        (5000 * "[", "config.json is not readable JSON: its brackets are nested too deeply"),
    ],
)
def test_a_truncated_file_is_named(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        from_json(Config, path)


def test_a_value_holds_from_its_iteration_on():
    steps = ((0, 0.6), (500, 0.3))
    assert [value_at(steps, i) for i in (0, 499, 500, 999)] == [0.6, 0.6, 0.3, 0.3]
