"""One command line for every agent."""

import dataclasses
import json
from pathlib import Path
from typing import ClassVar

import pytest

from agents.command_line import main
from tests.agents.test_runs import Config as Base


@dataclasses.dataclass(frozen=True)
class Config(Base):
    """A configuration with a reward and a switch."""

    resumable: ClassVar[tuple[str, ...]] = ("num_iterations", "name")
    fresh: bool = False
    """Whether it is fresh."""


PRESETS = {"small": Config(num_iterations=2), "large": Config(num_iterations=200, fresh=True)}


def started(*arguments: str):
    """Returns what `train` is called with."""
    calls = []
    main(Config, PRESETS, lambda *call: calls.append(call), list(arguments))
    return calls[0]


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        started(*arguments)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.fixture
def run(tmp_path):
    config = Config(num_iterations=7, seed=2**40)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
    return tmp_path


def test_the_first_preset_is_the_default_and_flags_change_it():
    assert started() == (PRESETS["small"], Path("runs/one"), False)
    config, out, _ = started("--preset", "large", "--reward", "hpsv2", "--no-fresh", "--out", "a/b c")
    assert config == Config(num_iterations=200, reward="hpsv2")
    assert out == Path("a/b c")


def test_a_run_is_continued_with_its_own_configuration(run):
    config, out, resume = started("--resume", str(run), "--num-iterations", "9")
    assert config == Config(num_iterations=9, seed=2**40)
    assert (out, resume) == (run, True)


@pytest.mark.parametrize("flag", ["--re", "--res", "--ou", "--pre", "--num-iter"])
def test_flags_are_not_guessed(capsys, flag):
    assert "Unrecognized options" in refused(capsys, flag, "clip")


def test_a_flag_may_stand_beside_its_neighbour_of_the_same_beginning():
    assert started("--reward", "clip")[0].reward == "clip"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "3"], f"seed of a run that is continued must stay {2**40}, got 3; only num_iterations"),
        (["--fresh"], "fresh of a run that is continued must stay False, got True"),
        (["--preset", "large"], "--preset is for a new run, and --resume"),
        (["--out", "x"], "--out is for a new run, and --resume"),
    ],
)
def test_what_a_continued_run_cannot_change_is_refused(capsys, run, arguments, message):
    assert message in refused(capsys, "--resume", str(run), *arguments)


def test_an_unknown_preset_and_a_folder_without_a_run_are_refused(capsys, tmp_path):
    assert "preset must be one of small, large, got 'huge'" in refused(capsys, "--preset", "huge")
    assert "is not a run directory" in refused(capsys, "--resume", str(tmp_path))


@pytest.mark.parametrize("value", ["nan", "0", "-3"])
def test_a_number_outside_its_range_is_named(capsys, value):
    shown = refused(capsys, "--num-iterations", value)
    assert "num_iterations must be finite and at least 1" in shown or "--num-iterations" in shown


@pytest.mark.parametrize("saved", [False, True])
def test_an_interrupted_run_says_whether_it_can_go_on(saved, tmp_path, capsys):
    out = tmp_path / "a[/b] c"

    def interrupted(*_):
        if saved:
            out.mkdir(parents=True)
            (out / "checkpoint.pt").touch()
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        main(Config, PRESETS, interrupted, ["--out", str(out)])
    assert stop.value.code == 130
    left = f"continue with: python -m agents.one --resume '{out}'" if saved else "nothing was saved"
    assert capsys.readouterr().err == f"agents.one: interrupted; {left}\n"


def test_help_shows_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        started("--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "One command line for every agent." in shown
    for flag in (
        "--preset",
        "--out",
        "--resume",
        "--trust-modules",
        "--reward",
        "--fresh",
        "Presets: small, large.",
    ):
        assert flag in shown
