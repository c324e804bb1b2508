"""A newcomer's paradigm, registered outside the package, is a full member of the suite."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest

from agents import adagen
from agents.command_line import main as agent
from baselines import common, random, scoreboard, search, static
from genenv import cli, tiers

ROOT = Path(__file__).parents[1]
ENV_ID = "toy_paradigm:Toy/Strokes-v0"
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


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Works in a folder away from the checkout."""
    monkeypatch.chdir(tmp_path)


def run(*arguments):
    """Runs a command in a process of its own, which knows the newcomer's module by its id alone."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-W", "error", "-m", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.fixture
def here(monkeypatch, capsys):
    """Runs a command in this process, which saves a new one's imports, and returns what it prints."""

    def call(main, *arguments):
        monkeypatch.setattr("sys.argv", ["command", *map(str, arguments)])
        status = main()
        shown = capsys.readouterr()
        assert status == 0, shown
        return shown.out

    return call


def baseline(module):
    """Returns the command of a baseline."""
    return lambda: common.main(getattr(module, "Config", common.Task), module.run, module.__doc__)


@pytest.fixture
def kwargs(folder):
    """Its keyword arguments, as a command line takes them."""
    return json.dumps({"backbone": folder})


def test_it_keeps_every_promise(kwargs):
    out = run("genenv.cli", "check", ENV_ID, "--env-kwargs", kwargs)
    assert "ok   a zero action is the hand-crafted schedule" in out
    assert "FAIL" not in out


@pytest.mark.parametrize(
    "more", [{"horizon": 5}, {"contexts": "grouped:2", "observe": ["features"]}, {"smoothing": 0.5}]
)
def test_it_keeps_every_promise_with_other_arguments(folder, here, more):
    out = here(cli.main, "check", ENV_ID, "--env-kwargs", json.dumps(more | {"backbone": folder}))
    assert "ok   a zero action is the hand-crafted schedule" in out
    assert "FAIL" not in out


def test_it_is_listed_where_its_module_is_named(toy, here):
    out = here(cli.main, "list", ENV_ID)
    assert f"{ENV_ID}\n  needs  backbone=FOLDER" in out
    assert "tier strokes: images of 1 x 6 x 6, 3 classes" in out


def test_its_contexts_have_the_names_of_its_tier(toy, folder):
    env = gym.make_vec(ENV_ID, num_envs=2, backbone=folder)
    assert tuple(env.unwrapped.contexts.names) == toy.NAMES
    assert env.reward.rewards.keys() == {"contrast"}


def test_it_is_evaluated_by_its_own_judge(kwargs, tmp_path, here):
    arguments = ("--env-kwargs", kwargs, "--num-images", 60, "--batch-size", 25, "--json", "found.json")
    assert "protocol   strokes" in here(cli.main, "evaluate", ENV_ID, *arguments)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["protocol"] == "strokes"
    assert found["nfe"] == 8
    assert len(found["class_accuracy"]) == 3
    assert found["metrics"]["fid"] > 0


def test_its_speed_is_measured_without_a_released_loop(kwargs, here):
    out = here(cli.main, "bench", ENV_ID, "--env-kwargs", kwargs, "--repeats", 1, "--num-images", 4)
    assert "ratio" in out
    assert "released loop" not in out


def test_its_episodes_are_drawn(kwargs, tmp_path, here):
    here(cli.main, "play", ENV_ID, "--env-kwargs", kwargs, "--out", "strip.png", "--num-images", 3)
    assert (tmp_path / "strip.png").stat().st_size > 1000


def test_its_hand_crafted_schedule_is_measured_and_searched(kwargs, tmp_path, here):
    task = ("--env-id", ENV_ID, "--env-kwargs", kwargs, "--seeds", 0, "--num-images", 40)
    here(baseline(static), *task, "--out", "static.json")
    small = ("--budget", 400, "--images-per-candidate", 20, "--popsize", 4, "--tuning-images", 20)
    here(baseline(search), *task, *small, "--out", "search.json")
    by_hand, found = (json.loads((tmp_path / name).read_text()) for name in ("static.json", "search.json"))
    assert [row["method"] for row in by_hand] == ["hand-crafted"]
    assert list(found[0]["schedule"]) == ["share", "guidance_weight"]


def test_an_agent_learns_on_it_and_stands_beside_the_baselines(folder, kwargs, tmp_path, here):
    arguments = ("--env-id", ENV_ID, "--backbone", folder, "--num-steps", 3, "--reward", "contrast")
    run("agents.adagen", *arguments, *AGENT, "--out", "mine")
    summary = json.loads((tmp_path / "mine" / "summary.json").read_text())
    assert summary["env_id"] == ENV_ID
    assert (tmp_path / "mine" / "samples.png").stat().st_size > 1000
    same = ("--env-kwargs", kwargs, "--num-images", 40)
    here(baseline(random), "--env-id", ENV_ID, *same, "--seeds", 0, "--out", "random.json")
    here(cli.main, "evaluate", ENV_ID, *same, "--json", "found.json")
    table = here(scoreboard.main, "mine/summary.json", "random.json", "found.json")
    assert table.count("Toy/Strokes-v0") == 1  # one task
    assert {"| adagen, learned ", "| random ", "| hand-crafted "} <= {
        r[: r.find("|", 1)] for r in table.split("\n")
    }


def test_its_discriminator_is_missed_by_name(folder, capsys):
    arguments = ["--env-id", ENV_ID, "--backbone", folder, "--num-steps", "3", *AGENT]
    with pytest.raises(SystemExit) as stop:
        agent(adagen.Config, adagen.PRESETS, adagen.train, arguments)
    assert stop.value.code == 2
    assert "tier 'strokes' has no discriminator" in " ".join(capsys.readouterr().err.split())


def test_a_run_with_a_reward_of_its_own_is_evaluated_and_drawn_where_it_is_trusted(
    folder, tmp_path, here, capsys
):
    arguments = ["--env-id", ENV_ID, "--backbone", folder, "--num-steps", "3", *AGENT, "--out", "mine"]
    agent(adagen.Config, adagen.PRESETS, adagen.train, [*arguments, "--reward", "toy_paradigm:make_contrast"])
    policy = ["--policy", "agents.adagen:load_policy", "--run", "mine"]
    for command in (["evaluate", ENV_ID, "--num-images", "40"], ["play", ENV_ID, "--num-images", "2"]):
        assert cli.main([*command, *policy]) == 2
        assert "would run the code of a module; " in capsys.readouterr().err
        here(cli.main, *command, *policy, "--trust-modules")
    assert (tmp_path / "film_strip.png").stat().st_size > 1000
