"""A configuration of AdaGen, its command line and its JSON are one thing in three forms."""

import dataclasses
import json
import math
import shlex
import tempfile
import types
import typing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.adagen import PRESETS, Config
from agents.command_line import main
from agents.config import as_json, command, from_json
from genenv.ranges import Range, Steps

HINTS = typing.get_type_hints(Config, include_extras=True)
NAMES = [field.name for field in dataclasses.fields(Config)]
PLAIN = {
    name: typing.get_args(hint)[0] if hasattr(hint, "__metadata__") else hint for name, hint in HINTS.items()
}
RANGES = {
    name: next(m for m in hint.__metadata__ if isinstance(m, Range))
    for name, hint in HINTS.items()
    if hasattr(hint, "__metadata__")
}
words = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
texts = words | st.sampled_from(
    ["", "-", "--", "-1", "--out", "--re=x", "None", "none", "True", "a 'b' \"c\"", "{}"]
)


def numbers(kind, allowed):
    """Returns the numbers of a type in a range."""
    if kind is int:
        assert not allowed.excluded
        high = None if allowed.high == math.inf else math.ceil(allowed.high) - 1
        return st.integers(math.ceil(allowed.low), high)
    return st.floats(
        allowed.low,
        None if allowed.high == math.inf else allowed.high,
        allow_infinity=False,
        exclude_min=allowed.excluded,
        exclude_max=allowed.high < math.inf,
    )


def steps(allowed):
    """Returns legal values that change while a run goes on."""
    later = st.lists(st.integers(1, 2**40), max_size=3, unique=True).map(sorted)
    each = numbers(float, allowed)
    return later.flatmap(
        lambda firsts: st.tuples(*[st.tuples(st.just(first), each) for first in (0, *firsts)])
    )


def legal(name):
    """Returns the legal values of a field."""
    kind = PLAIN[name]
    if name in RANGES:
        return steps(RANGES[name]) if kind == Steps else numbers(kind, RANGES[name])
    told = texts.filter(lambda text: text != "None")  # the command line's word for None
    return {bool: st.booleans(), str: texts, str | None: st.none() | told}[kind]


@st.composite
def configs(draw):
    """Returns legal configurations: a few fields differ from the defaults, or all."""
    chosen = draw(st.lists(st.sampled_from(NAMES), unique=True) | st.just(NAMES))
    fields = {name: draw(legal(name)) for name in chosen}
    most = fields.get("num_envs", Config.num_envs)
    fields["num_minibatches"] = min(fields.get("num_minibatches", Config.num_minibatches), most)
    if not fields.get("table_rate", Config.table_rate):
        fields["adaptive"] = True
    return Config(**fields)


def read_back(text):
    """Returns the configuration in a file of such a text, or the message of the error."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(text, encoding="utf-8")
        try:
            return from_json(Config, path)
        except ValueError as error:
            shown = str(error)
            assert shown.startswith(str(path))
            return shown.removeprefix(str(path)).removeprefix(":").strip()


@settings(max_examples=60)
@given(config=configs(), out=texts.filter(bool).map(Path))
def test_the_command_of_a_summary_makes_the_same_configuration(config, out):
    program, calls = shlex.split(command(Config.agent, config, out)), []
    assert program[:3] == ["python", "-m", "agents.adagen"]
    main(Config, PRESETS, lambda *call: calls.append(call), program[3:])
    assert calls == [(config, out, False)]


@given(config=configs())
def test_a_configuration_comes_back_from_its_file(config):
    assert read_back(as_json(config)) == config


@given(name=st.sampled_from(sorted(RANGES)), data=st.data())
def test_a_number_outside_its_range_is_refused_by_name_wherever_it_stands(name, data):
    kind, allowed = PLAIN[name], RANGES[name]
    low = allowed.low
    if kind is int:
        bad = st.integers(max_value=math.ceil(low) - 1)
    else:
        bad = st.floats(max_value=low, exclude_max=not allowed.excluded)
        bad |= st.sampled_from([math.nan, math.inf, -math.inf])
        if allowed.high < math.inf:
            bad |= st.floats(min_value=allowed.high)
    value = data.draw(bad)
    if kind == Steps:
        good = data.draw(steps(allowed))
        place = data.draw(st.integers(0, len(good) - 1))
        value = tuple((first, value if i == place else each) for i, (first, each) in enumerate(good))
    with pytest.raises(ValueError, match=rf"^{name} must be (finite|in) "):
        Config(**{name: value})
    changed = json.loads(as_json(Config())) | {name: value}
    assert read_back(json.dumps(changed)).startswith(f"{name} must be ")


@given(missing=st.sets(st.sampled_from(NAMES), min_size=1))
def test_missing_fields_of_a_file_are_named(missing):
    values = {name: value for name, value in json.loads(as_json(Config())).items() if name not in missing}
    named = ", ".join(name for name in NAMES if name in missing)
    assert read_back(json.dumps(values)).startswith(f"has no field {named}: ")


@given(extra=st.dictionaries(words.filter(lambda name: name not in NAMES), st.none(), min_size=1))
def test_unknown_fields_of_a_file_are_named(extra):
    found = read_back(json.dumps(json.loads(as_json(Config())) | extra))
    assert found.startswith(f"has an unknown field {', '.join(extra)}: ")


ATOMS = {
    types.NoneType: st.none(),
    bool: st.booleans(),
    int: st.integers(-(10**400), 10**400),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: words,
    dict: st.dictionaries(words, st.integers(), max_size=2),
    list: st.lists(
        st.none() | st.integers() | words | st.lists(st.integers() | words, max_size=3), max_size=3
    ),
}


@given(name=st.sampled_from(NAMES), data=st.data())
def test_a_mistyped_field_of_a_file_is_named(name, data):
    kind = PLAIN[name]
    right = {float: {int, float}, str | None: {str, types.NoneType}, Steps: {list}}.get(kind, {kind})
    value = data.draw(st.sampled_from(list(ATOMS.keys() - right)).flatmap(ATOMS.__getitem__))
    found = read_back(json.dumps(json.loads(as_json(Config())) | {name: value}))
    assert found.startswith(f"{name} must be ")


@given(name=st.sampled_from([name for name in NAMES if PLAIN[name] == Steps]), value=ATOMS[list])
def test_steps_of_another_shape_are_named(name, value):
    assert read_back(json.dumps(json.loads(as_json(Config())) | {name: value})).startswith(f"{name} must ")


@given(name=st.sampled_from([name for name in NAMES if PLAIN[name] is float]), zeros=st.integers(309, 5000))
def test_a_number_too_large_for_its_type_is_named(name, zeros):
    text = as_json(Config()).replace(f'"{name}": {getattr(Config, name)}', f'"{name}": 1' + zeros * "0")
    found = read_back(text)
    assert found.startswith(f"{name} must be ")
