import json

import pytest

from genenv.checkpoints import CheckpointError, read_json
from genenv.json_text import MAX_DEPTH, parse_json, parse_object

REFUSED = [
    ("", "FILE is not readable JSON: Expecting value"),
    ('{"a": 1', "FILE is not readable JSON: Expecting ',' delimiter"),
    (b'{"a": "\xff"}', "FILE is not readable JSON: 'utf-8' codec can't decode byte 0xff"),
    (b'{"a": "\xff"}\xff', "FILE is not readable JSON: 'utf-8' codec can't decode byte 0xff"),
    ('{"a": NaN}', "FILE: a must be finite, got nan"),
    ('{"a": {"b": [0, -Infinity]}}', "FILE: b must be finite, got -inf"),
    ('{"a": 1e999}', "FILE: a must be finite, got inf"),
    ('{"a": 0, "b": -1' + 309 * "0" + "}", "FILE: b must be finite, got -inf"),
    ('{"a": 1' + 9999 * "0" + "}", "FILE: a must be finite, got inf"),
    ("NaN", "FILE: the value must be finite, got nan"),
    ('{"a": 1, "b": 2, "a": 1}', "FILE: a is there twice"),
    ('[{"c": {"a": 1, "b": 2, "b": 3}}]', "FILE: b is there twice"),
    ('{"a": "\\ud800"}', r"FILE: a must be a text that UTF-8 can hold, got '\\ud800'"),
    ('{"a": {"\\udfff": 1}}', "must be a text that UTF-8 can hold"),
    (99999 * "[", "FILE is not readable JSON: its brackets are nested too deeply"),
    (99999 * '{"a":', "FILE is not readable JSON: its brackets are nested too deeply"),
    ('{"a": ' + 200 * "[" + 200 * "]" + "}", f"FILE: a is nested more than {MAX_DEPTH} deep"),
]


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_nobody_can_have_meant_is_answered_with_the_place(content, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_json(content, "FILE")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value",
    [
        None,
        3,
        {"a": [1, 2.5, -(10**307), True, None, "\u00e9\U0001f600"], "b": {"a": {}}, "": []},
        [{"a": 1}, {"a": 2}],
    ],
)
def test_what_python_writes_comes_back(value):
    for content in (json.dumps(value), json.dumps(value, ensure_ascii=False).encode()):
        assert parse_json(content, "FILE") == value


def test_whole_numbers_stay_whole_up_to_those_a_float_can_hold():
    assert parse_json(f"[{10**307}]", "FILE") == [10**307]
    assert float(parse_json("9" * 308, "FILE")) < float("inf")


@pytest.mark.parametrize("content", ["[1]", "3", "null"])
def test_an_object_is_an_object(content):
    with pytest.raises(ValueError, match="FILE must hold a JSON object, got "):
        parse_object(content, "FILE")


@pytest.mark.parametrize(("content", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_damaged_file_beside_weights_is_one_of_theirs(tmp_path, content, message):
    path = tmp_path / "manifest.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message.replace("FILE", r"manifest\.json")):
        read_json(path)
