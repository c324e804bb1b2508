"""The tables of docs/clients.md say what happens when the wrappers are run."""

import copy
import functools
import itertools
import re
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import vector as gymnasiums

from genenv.wrappers import vector as ours

PAGE = (Path(__file__).parents[1] / "docs" / "clients.md").read_text()
COMBINATIONS = list(itertools.product(["torch", "numpy"], ["SameStep", "NextStep", "Disabled"]))
FLAT = ours.FlattenObservation
WRAPPERS = {
    "FilterObservation": lambda env: gymnasiums.FilterObservation(env, ["tokens"]),
    "FlattenObservation": gymnasiums.FlattenObservation,
    "TransformObservation": lambda env: gymnasiums.TransformObservation(env, lambda observation: observation),
    "DtypeObservation": lambda env: gymnasiums.DtypeObservation(FLAT(env), np.float64),
    "ReshapeObservation": lambda env: gymnasiums.ReshapeObservation(FLAT(env), (1, 29)),
    "RescaleObservation": lambda env: gymnasiums.RescaleObservation(
        FLAT(env), np.full(29, -1, np.float32), np.full(29, 1, np.float32)
    ),
    "NormalizeObservation": lambda env: gymnasiums.NormalizeObservation(FLAT(env)),
    "ClipAction": gymnasiums.ClipAction,
    "RescaleAction": lambda env: gymnasiums.RescaleAction(env, np.full(4, -2), np.full(4, 2)),
    "TransformAction": lambda env: gymnasiums.TransformAction(env, lambda actions: 0.5 * actions),
    "ClipReward": lambda env: gymnasiums.ClipReward(env, 0, 0.25),
    "TransformReward": lambda env: gymnasiums.TransformReward(env, lambda rewards: 2 * rewards),
    "NormalizeReward": gymnasiums.NormalizeReward,
    "RecordEpisodeStatistics": gymnasiums.RecordEpisodeStatistics,
    "DictInfoToList": gymnasiums.DictInfoToList,
    "RecordVideo": lambda env: gymnasiums.RecordVideo(env, "videos"),
    "our FlattenObservation": ours.FlattenObservation,
    "our RecordEpisodeStatistics": ours.RecordEpisodeStatistics,
    "our RecordImages": lambda env: ours.RecordImages(env, "images"),
}
NEEDS = {"RecordVideo": "moviepy", "our RecordImages": "PIL"}


ROW = re.compile(r"^\| ([\w ]+?) \|((?: (?:yes|no) \|){6})$", re.MULTILINE)
TABLE = {name: cells.replace("|", " ").split() for name, cells in ROW.findall(PAGE)}
"""Wrapper -> whether it works with each of the combinations."""


def host(value):
    if isinstance(value, dict):
        return {name: host(entry) for name, entry in value.items()}
    return value.numpy() if isinstance(value, torch.Tensor) else value


@functools.cache
def made(output, mode):
    kwargs = {"num_envs": 3, "num_steps": 2, "reward": "classifier", "render_mode": "rgb_array"}
    return gym.make_vec("AdaGen/MaskGIT-v0", output=output, autoreset_mode=mode, **kwargs)


def play(wrapper, output, mode):
    """Plays two episodes; an error, or a wrong observation, reward or sum, is raised."""
    env = wrapper(copy.deepcopy(made(output, mode)))
    changes_actions = isinstance(env, gym.vector.VectorActionWrapper)
    env.reset(seed=0)
    for t in range(5 if mode == "NextStep" else 4):
        if t == 2 and mode == "Disabled":
            env.reset(options={"reset_mask": np.ones(3, bool)})
        actions = np.full((3, 4), 0.25, np.float32)
        own_kind = output == "numpy" or changes_actions
        observation, reward, terminated, _, info = env.step(actions if own_kind else torch.as_tensor(actions))
        assert host(observation) in env.observation_space
        assert host(reward).shape == (3,)
        if isinstance(info, dict) and "final_obs" in info:
            assert host(info["final_obs"]) in env.observation_space
        if isinstance(info, dict) and "episode" in info and terminated.all():
            assert np.allclose(info["episode"]["r"], reward, atol=1e-6)
            assert list(info["episode"]["l"]) == [2, 2, 2]
    env.close()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WRAPPERS)
def test_the_table_says_where_a_wrapper_works(name, tmp_path, monkeypatch):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    monkeypatch.chdir(tmp_path)
    found = []
    for output, mode in COMBINATIONS:
        try:
            play(WRAPPERS[name], output, mode)
        except (AssertionError, NotImplementedError, TypeError, ValueError):
            found.append("no")
        else:
            found.append("yes")
    assert found == TABLE[name]


def test_the_table_names_every_wrapper_that_was_run():
    assert list(TABLE) == list(WRAPPERS)
