"""A newcomer's paradigm, registered outside the package, is a full member of the suite."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from genenv import tiers

ROOT = Path(__file__).parents[1]
ENV_ID = "toy_paradigm:Toy/Strokes-v0"
PYTHON = [sys.executable, "-W", "error"]
AGENT = [
    *("--num-envs", "16", "--num-minibatches", "2", "--num-iterations", "2", "--hidden-dim", "8"),
    *("--eval-interval", "2", "--eval-images", "40"),
]


@pytest.fixture(scope="module")
def toy():
    """The newcomer's module; what it registers is gone afterwards, for the tests that go through all ids."""
    yield importlib.import_module("toy_paradigm")
    del sys.modules["toy_paradigm"], gym.registry["Toy/Strokes-v0"], tiers._TIERS["strokes"]


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """The folder of the toy's networks."""
    return toy.write_folder(tmp_path_factory.mktemp("toy") / "weights")


def run(*arguments, cwd):
    """Runs a command away from the checkout, with the newcomer's module on its path."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [*PYTHON, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def kwargs(folder):
    """Its keyword arguments, as a command line takes them."""
    return json.dumps({"backbone": folder})


@pytest.mark.parametrize(
    "more", [{}, {"horizon": 5}, {"contexts": "grouped:2", "observe": ["features"]}, {"smoothing": 0.5}]
)
def test_it_keeps_every_promise(folder, tmp_path, more):
    out = run(
        "genenv.cli", "check", ENV_ID, "--env-kwargs", json.dumps(more | {"backbone": folder}), cwd=tmp_path
    )
    assert "ok   a zero action is the hand-crafted schedule" in out
    assert "FAIL" not in out


def test_it_is_listed_where_its_module_is_named(tmp_path):
    out = run("genenv.cli", "list", ENV_ID, cwd=tmp_path)
    assert f"{ENV_ID}\n  needs  backbone=FOLDER" in out
    assert "tier strokes: images of 1 x 6 x 6, 3 classes" in out


def test_its_contexts_have_the_names_of_its_tier(toy, folder):
    env = gym.make_vec(ENV_ID, num_envs=2, backbone=folder)
    assert tuple(env.unwrapped.contexts.names) == toy.NAMES
    assert env.reward.rewards.keys() == {"contrast"}


def test_it_is_evaluated_by_its_own_judge(kwargs, tmp_path):
    arguments = ("--env-kwargs", kwargs, "--num-images", 60, "--batch-size", 25, "--json", "found.json")
    out = run("genenv.cli", "evaluate", ENV_ID, *arguments, cwd=tmp_path)
    assert "protocol   strokes" in out
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["protocol"] == "strokes"
    assert found["nfe"] == 8
    assert len(found["class_accuracy"]) == 3
    assert found["metrics"]["fid"] > 0


def test_its_speed_is_measured_without_a_released_loop(kwargs, tmp_path):
    out = run(
        "genenv.cli", "bench", ENV_ID, "--env-kwargs", kwargs, "--repeats", 1, "--num-images", 4, cwd=tmp_path
    )
    assert "ratio" in out
    assert "released loop" not in out


def test_its_episodes_are_drawn(kwargs, tmp_path):
    run(
        "genenv.cli",
        "play",
        ENV_ID,
        "--env-kwargs",
        kwargs,
        "--out",
        "strip.png",
        "--num-images",
        3,
        cwd=tmp_path,
    )
    assert (tmp_path / "strip.png").stat().st_size > 1000


def test_its_hand_crafted_schedule_is_tuned_and_searched(kwargs, tmp_path):
    common = ("--env-id", ENV_ID, "--env-kwargs", kwargs, "--seeds", 0, "--num-images", 40)
    run(
        "baselines.static",
        *common,
        "--largest",
        0.5,
        "--tuning-images",
        40,
        "--out",
        "static.json",
        cwd=tmp_path,
    )
    small = ("--budget", 400, "--images-per-candidate", 20, "--popsize", 4, "--tuning-images", 20)
    run("baselines.search", *common, *small, "--out", "search.json", cwd=tmp_path)
    static, search = (json.loads((tmp_path / name).read_text()) for name in ("static.json", "search.json"))
    assert [row["method"] for row in static] == ["hand-crafted", "guidance tuned"]
    assert list(search[0]["schedule"]) == ["share", "guidance_weight"]


def test_an_agent_learns_on_it_and_stands_beside_the_baselines(folder, kwargs, tmp_path):
    arguments = ("--env-id", ENV_ID, "--backbone", folder, "--num-steps", 3, "--reward", "contrast")
    run("agents.adagen", *arguments, *AGENT, "--out", "mine", cwd=tmp_path)
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert summary["env_id"] == ENV_ID
    assert (tmp_path / "mine" / "samples.png").stat().st_size > 1000
    same = ("--env-kwargs", kwargs, "--num-images", 40)
    run("baselines.random", "--env-id", ENV_ID, *same, "--seeds", 0, "--out", "random.json", cwd=tmp_path)
    run("genenv.cli", "evaluate", ENV_ID, *same, "--json", "found.json", cwd=tmp_path)
    files = ("mine/summary.json", "random.json", "found.json")
    table = run("baselines.scoreboard", *files, cwd=tmp_path)
    assert table.count("Toy/Strokes-v0") == 1  # one task
    assert {"| adagen, learned ", "| random ", "| hand-crafted "} <= {
        r[: r.find("|", 1)] for r in table.split("\n")
    }


def test_its_discriminator_is_missed_by_name(folder, tmp_path):
    command = [
        *PYTHON,
        "-m",
        "agents.adagen",
        "--env-id",
        ENV_ID,
        "--backbone",
        folder,
        "--num-steps",
        "3",
        *AGENT,
    ]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "tier 'strokes' has no discriminator" in " ".join(done.stderr.split())
