import dataclasses
import io
import json
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from rich.console import Console

import genenv
from baselines import oracle, random, sb3, search, static
from baselines.common import (
    Result,
    StaticSchedules,
    Task,
    main,
    parse_results,
    table_of,
    write_results,
)
from genenv.rng import Stream
from genenv.rollout import schedule_actor
from genenv.schedules import handcrafted

RESULT = Result(
    method="static",
    env_id="AdaGen/MaskGIT-v0",
    env_kwargs={"num_steps": 2, "observe": ["step"]},
    seed=0,
    decisions=2,
    num_images=100,
    protocol="digits",
    metrics=dict.fromkeys(("fid", "kid", "precision", "recall", "density", "coverage", "accuracy"), 0.125),
    images=1000,
    seconds=1.5,
    schedule={"mask_ratio": [0.1, 1e-9 / 3]},
)


def read_file(path):
    return parse_results(json.loads(path.read_text()), path)


def test_results_survive_the_file_and_leave_nothing_else(tmp_path):
    results = [RESULT, dataclasses.replace(RESULT, seed=1, images=7)]
    write_results(tmp_path / "deep" / "results.json", results)
    assert read_file(tmp_path / "deep" / "results.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]


@pytest.mark.parametrize("method", ["a[/b]", "[red]static"])
def test_the_table_shows_any_name_as_it_is(method):
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of([dataclasses.replace(RESULT, method=method)]))
    assert f"{method} " in console.file.getvalue()


def test_the_table_has_a_row_for_each_method():
    results = [RESULT, dataclasses.replace(RESULT, seed=1), dataclasses.replace(RESULT, method="other")]
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(results))
    lines = [line for line in console.file.getvalue().splitlines() if "static" in line or "other" in line]
    assert len(lines) == 2
    assert "0.125 ± 0.000" in lines[0]
    assert "±" not in lines[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}]", "entry 0 has no 'decisions'; run it again"),
        ("3", "a list of a baseline's results, got 3"),
        ("[4]", r"a list of a baseline's results, got \[4\]"),
    ],
)
def test_a_file_without_results_is_refused(content, message):
    with pytest.raises(ValueError, match=rf"^other\.json must hold .*{message}"):
        parse_results(json.loads(content), Path("other.json"))


def test_a_result_of_another_version_names_what_is_unknown():
    entry = dataclasses.asdict(RESULT) | {"zeal": 1}
    with pytest.raises(ValueError, match="entry 1 has an unknown 'zeal'"):
        parse_results([dataclasses.asdict(RESULT), entry], Path("other.json"))


@pytest.mark.parametrize("seeds", [(0, 1), (7,)])
def test_every_row_is_told_and_saved_as_soon_as_it_is_known(monkeypatch, tmp_path, capsys, seeds):
    out = tmp_path / "deep" / "x.json"
    command = ["static", "--seeds", *map(str, seeds), "--out", str(out)]
    monkeypatch.setattr("sys.argv", command)

    def run(task):
        assert task.seeds == seeds
        assert out.parent.is_dir()
        for done, seed in enumerate(task.seeds):
            assert out.is_file() == (done > 0)
            yield dataclasses.replace(RESULT, seed=seed)
            assert [result.seed for result in read_file(out)] == list(seeds[: done + 1])
            assert f"static, seed {seed}: fid 0.125, " in capsys.readouterr().err

    assert main(Task, run, "Help.") == 0
    assert "static" in capsys.readouterr().out


def test_an_interrupted_command_keeps_what_was_finished(monkeypatch, tmp_path, capsys):
    def run(task):
        yield RESULT
        raise KeyboardInterrupt

    out = tmp_path / "x.json"
    monkeypatch.setattr("sys.argv", ["static.py", "--out", str(out)])
    assert main(Task, run, None) == 130
    assert capsys.readouterr().err.splitlines()[1:] == [f"static: interrupted; {out} holds what was finished"]
    assert read_file(out) == [RESULT]


def test_a_command_that_has_no_file_to_write_to_says_so_before_it_starts(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sys.argv", ["static", "--out", str(tmp_path)])
    assert main(Task, lambda task: pytest.fail("started"), None) == 2
    assert (
        capsys.readouterr().err
        == f"static: out must be a file, got the folder {tmp_path}; name a file in it\n"
    )


TOKENS = "PolicyTuning/Tokens-v0"
IDS = ", ".join(genenv.env_ids())


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (static, "--env-id Foo", f"env_id must be one of {IDS}, got 'Foo'"),
        (static, "--env-id AdaGen/DIT-v0", "got 'AdaGen/DIT-v0'; did you mean 'AdaGen/DiT-v0'?"),
        (static, "--env-id no_such:Foo", "env_id 'no_such:Foo' cannot be loaded: No module named 'no_such'"),
        (
            static,
            "--seeds 0 1 0",
            "seeds must be different whole numbers from 0 on, such as 0 1 2, got (0, 1, 0)",
        ),
        (static, "--seeds -1", "seeds must be different whole numbers from 0 on, such as 0 1 2, got (-1,)"),
        (static, "--num-images 0", "num_images must be finite and at least 1, got 0"),
        (static, "--tuning-images 1", "tuning_images must be finite and at least 2, got 1"),
        (static, f"--env-id {TOKENS}", "are no schedule but TokenActions: they have no parameters"),
        (search, f"--env-id {TOKENS}", "but the actions are tokens, which have none"),
        (search, "--budget 10", "budget must be at least 4304 images for one round, got 10"),
        (search, "--algorithm gp --budget 10", "budget must be at least 2192 images for one round, got 10"),
        (oracle, "--candidates 1", "candidates must be finite and at least 2, got 1"),
        (oracle, "--std 0", "std must be finite and above 0, got 0.0"),
        (search, "--popsize 1", "popsize must be finite and at least 2, got 1"),
        (search, "--sigma nan", "sigma must be finite and above 0, got nan"),
        (search, "--sigma 0", "sigma must be finite and above 0, got 0.0"),
        (search, "--images-per-candidate 1", "images_per_candidate must be finite and at least 2, got 1"),
        (search, "--tuning-images -5", "tuning_images must be finite and at least 2, got -5"),
        (search, "--batch-size 0", "batch_size must be finite and at least 1, got 0"),
        (sb3, "--minutes -1", "minutes must be finite and at least 0, got -1.0"),
        (sb3, "--minutes nan", "minutes must be finite and at least 0, got nan"),
        (sb3, "--minutes inf", "minutes must be finite and at least 0, got inf"),
        (sb3, "--num-envs 0", "num_envs must be finite and at least 1, got 0"),
        (random, "--seeds -3", "seeds must be different whole numbers from 0 on, such as 0 1 2, got (-3,)"),
    ],
)
def test_a_users_mistake_is_told_and_status_two(monkeypatch, capsys, module, options, message):
    monkeypatch.setattr("sys.argv", [module.__file__, *options.split()])
    try:
        status = main(getattr(module, "Config", Task), module.run, module.__doc__)
    except SystemExit as stop:  # tyro tells what a field does not take, in a box
        status = stop.code
    assert status == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("options", ["--seeds", "--seeds 1.5", "--seeds nan"])
def test_seeds_that_are_no_numbers_are_refused_by_the_command_line(monkeypatch, capsys, options):
    monkeypatch.setattr("sys.argv", ["static", *options.split()])
    with pytest.raises(SystemExit) as stop:
        main(Task, lambda task: pytest.fail("started"), None)
    assert stop.value.code == 2


@pytest.mark.parametrize("error", [OSError, ImportError, gym.error.Error])
def test_every_expected_error_is_one_line(monkeypatch, capsys, error):
    def run(task):
        raise error("two\nlines")

    monkeypatch.setattr("sys.argv", ["x.py"])
    assert main(Task, run, None) == 2
    assert capsys.readouterr().err == "x: two lines\n"


def test_a_schedule_actor_plays_the_row_of_each_step():
    table = torch.arange(6.0).view(3, 2)
    assert schedule_actor(table)({"step": torch.tensor([1, 1])}).tolist() == [[2, 3], [2, 3]]
    assert schedule_actor(torch.stack([table, -table]))({"step": torch.tensor([2, 2])}).tolist() == [
        [4, 5],
        [-4, -5],
    ]


def test_candidates_share_their_seeds_and_do_not_depend_on_the_batch():
    kwargs = {"num_steps": 2}
    small, large = (StaticSchedules("AdaGen/MaskGIT-v0", kwargs, batch_size) for batch_size in (4, 7))
    static = handcrafted(small.params)
    other = static * torch.tensor([1.0, 1.0, 3.0, 1.0])
    tables = torch.stack([static, other, static])
    images = small(tables, 5, 3, Stream.TUNING)
    assert images.shape == (3, 5, 1, 8, 8)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images, large(tables, 5, 3, Stream.TUNING))
