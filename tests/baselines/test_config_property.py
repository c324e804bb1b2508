"""The configuration of a baseline is what its command line says."""

import dataclasses
import json
from pathlib import Path

import pytest
import tyro
from hypothesis import given, settings
from hypothesis import strategies as st

from baselines import oracle, sb3, search, static
from baselines.common import Task

texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
told = texts.filter(lambda text: text != "None")  # the command line's word for None
above_zero = st.floats(0, allow_infinity=False, exclude_min=True)
kwargs = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda each: st.lists(each, max_size=2) | st.dictionaries(texts, each, max_size=2),
    max_leaves=5,
)
TASK = {
    "env_id": texts,
    "env_kwargs": st.dictionaries(texts, kwargs, max_size=3),
    "seeds": st.lists(st.integers(0, 2**70), min_size=1, max_size=4, unique=True).map(tuple),
    "num_images": st.integers(1),
    "name": st.none() | told,
    "out": st.none() | told.map(Path).filter(lambda path: str(path) != "None"),
}


grids = st.dictionaries(
    texts, st.lists(st.none() | st.integers() | texts, min_size=1, max_size=3), max_size=3
)
tuned = st.fixed_dictionaries(
    {
        "only": st.sampled_from([None, "hand-crafted", "published", "tuned"]),
        "settings": grids,
        "tuning_images": st.integers(2),
    }
)
asked = st.fixed_dictionaries(
    {
        "candidates": st.integers(2),
        "std": above_zero,
        "by": st.lists(st.sampled_from(["adversarial", "clip", "nearest-real"]), min_size=1).map(tuple),
    }
)


@st.composite
def searched(draw):
    """Returns legal fields of the search."""
    sizes = {
        name: draw(st.integers(2, 2**40)) for name in ("images_per_candidate", "popsize", "tuning_images")
    }
    least = 2 * sizes["tuning_images"] + sizes["popsize"] * sizes["images_per_candidate"]
    return sizes | {
        "budget": draw(st.integers(least)),
        "sigma": draw(above_zero),
        "algorithm": draw(st.sampled_from(["cma", "gp"])),
        "objective": draw(st.sampled_from(["reward_features", "judge", "adversarial"])),
        "batch_size": draw(st.integers(1)),
    }


trained = st.fixed_dictionaries(
    {
        "algo": st.sampled_from(list(sb3.ALGORITHMS)),
        "minutes": st.floats(0, allow_infinity=False),
        "num_envs": st.integers(1),
        "one_hot_tokens": st.booleans(),
    }
)


def words(config):
    """Yields the words of a command line that says every field."""
    for field in dataclasses.fields(config):
        flag, value = "--" + field.name.replace("_", "-"), getattr(config, field.name)
        if isinstance(value, bool):
            yield flag if value else flag.replace("--", "--no-", 1)
        elif isinstance(value, tuple):
            yield from (flag, *map(str, value))
        else:
            yield f"{flag}={json.dumps(value) if isinstance(value, dict) else value}"


@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (Task, st.just({})),
        (static.Config, tuned),
        (oracle.Config, asked),
        (search.Config, searched()),
        (sb3.Config, trained),
    ],
    ids=["random", "static", "oracle", "search", "sb3"],
)
@settings(max_examples=40)
@given(data=st.data())
def test_a_command_line_that_says_every_field_makes_the_configuration(kind, own, data):
    config = kind(**data.draw(st.fixed_dictionaries(TASK)), **data.draw(own))
    assert tyro.cli(kind, args=list(words(config))) == config
