"""Policies under settings that no reference vector has: their hand-crafted tables and their actions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import released_actions

from genenv.parity.policy import check_actions

KEYS = {
    "maskgit": ["manual_gen_ratios", "manual_temp", "manual_samp_temp", "manual_cfg"],
    "var": ["cfg", "top_k", "top_p", "manual_samp_temp"],
    "dit": ["timesteps", "manual_cfg"],
    "sit": ["timesteps", "manual_cfg"],
}


def configuration(family, keys=None, **changes):
    values = {"gen_steps": 5, "cfg_init": 1.5, "action_smooth": 0.8}
    if family in ("maskgit", "var"):
        values |= {"manual_samp_temp_init": 1.0}
    values |= {"maskgit": {"temp_init": 1.0}, "var": {"topk": 900, "topp": 0.96}}.get(family, {})
    return {"model_family": family, "action_keys": keys or KEYS[family]} | values | changes


def failures(recorded, checked, seed=0, scale=1.0):
    """Returns what differs between a reference with some settings and our own actions with others."""
    rows = recorded["gen_steps"] + (recorded["model_family"] in ("dit", "sit"))
    outputs = np.random.default_rng(seed).normal(0, scale, (rows, 3, len(recorded["action_keys"])))
    outputs = outputs.astype(np.float32)
    tables, actions = released_actions(recorded, outputs)
    io = {"post_raw": torch.from_numpy(outputs)}
    io |= {f"heuristic.{key}": torch.from_numpy(table) for key, table in tables.items()}
    io |= {f"post.{key}": torch.from_numpy(action) for key, action in actions.items()}
    return [result.quantity for result in check_actions("", checked, io) if not result.ok]


configurations = st.sampled_from(sorted(KEYS)).flatmap(
    lambda family: st.fixed_dictionaries(
        {
            "model_family": st.just(family),
            "action_keys": st.permutations(KEYS[family]),
            "gen_steps": st.sampled_from([1, 2, 3, 7, 16, 17, 32]),
            "action_smooth": st.sampled_from([0, 0.0, 0.4, 0.8, 0.95]) | st.floats(0, 0.95),
            "cfg_init": st.sampled_from([1, 0.3, 4.5]) | st.floats(0.05, 8),
            "temp_init": st.sampled_from([1, 0.3, 4.5]) | st.floats(0.05, 8),
            "manual_samp_temp_init": st.sampled_from([1, 0.7, 2.0]) | st.floats(0.05, 4),
            # Nearer to an end, but not on it, the reference's clipping in float32 moves a value and ours does not.
            "topk": st.sampled_from([0, 0.4, 1, 900, 4095, 4096, 5000]) | st.floats(0.01, 4095.9),
            "topp": st.sampled_from([0, 0.0, 0.96, 1, 1.0]) | st.floats(1e-5, 1 - 1e-5),
        }
    )
)


@settings(max_examples=200)
@given(configurations, st.integers(0, 1000), st.sampled_from([0.0, 0.1, 1.0, 4.0]))
def test_tables_and_actions_of_any_configuration_are_reproduced(configuration, seed, scale):
    assert failures(configuration, configuration, seed, scale) == []


@pytest.mark.parametrize(
    ("family", "setting", "value", "keys"),
    [
        ("maskgit", "temp_init", 0.3, ["manual_temp"]),
        ("maskgit", "manual_samp_temp_init", 0.7, ["manual_samp_temp"]),
        ("maskgit", "cfg_init", 4.5, ["manual_cfg"]),
        ("maskgit", "action_smooth", 0.4, KEYS["maskgit"]),
        ("var", "manual_samp_temp_init", 2.0, ["manual_samp_temp"]),
        ("var", "cfg_init", 2.0, ["cfg"]),
        ("var", "topk", 0.4, ["top_k"]),
        ("var", "topp", 1.0, ["top_p"]),
        ("dit", "cfg_init", 1.0, ["manual_cfg"]),
        ("sit", "cfg_init", 0.3, ["manual_cfg"]),
    ],
)
def test_a_configuration_is_not_reproduced_with_another_setting(family, setting, value, keys):
    recorded, usual = configuration(family, **{setting: value}), configuration(family)
    assert failures(recorded, recorded) == []
    found = failures(recorded, usual)
    assert {name.split()[-1] for name in found} == set(keys)
