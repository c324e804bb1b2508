import dataclasses
import io

import gymnasium as gym
import pytest
import torch
from rich.console import Console

import genenv
from baselines import search, static
from baselines.common import (
    Result,
    StaticSchedules,
    Task,
    main,
    parse_json,
    read_results,
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
    metrics=dict.fromkeys(("fid", "kid", "precision", "recall", "density", "coverage", "accuracy"), 0.125),
    images=1000,
    seconds=1.5,
    schedule={"mask_ratio": [0.1, 1e-9 / 3]},
)


def test_results_survive_the_file_and_leave_nothing_else(tmp_path):
    results = [RESULT, dataclasses.replace(RESULT, seed=1, images=7)]
    write_results(tmp_path / "deep" / "results.json", results)
    assert read_results(tmp_path / "deep" / "results.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]


def test_the_table_has_a_row_for_each_method():
    results = [RESULT, dataclasses.replace(RESULT, seed=1), dataclasses.replace(RESULT, method="other")]
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(results))
    lines = [line for line in console.file.getvalue().splitlines() if "static" in line or "other" in line]
    assert len(lines) == 2
    assert "0.125 ± 0.000" in lines[0]
    assert "±" not in lines[1]


@pytest.mark.parametrize("text", ["[{}]", "3", "{"])
def test_a_file_without_results_is_refused(tmp_path, text):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match=r"other\.json must hold the results of a baseline, got "):
        read_results(tmp_path / "other.json")


def test_a_command_hands_its_results_and_its_file_on(monkeypatch, tmp_path):
    handed = []
    monkeypatch.setattr("sys.argv", ["static", "--seeds", "2", "--out", str(tmp_path / "x.json")])
    finish = lambda results, out: handed.append((results, out))  # noqa: E731
    assert main(Task, lambda task: [RESULT] * task.seeds, "Help.", finish) == 0
    assert handed == [([RESULT, RESULT], tmp_path / "x.json")]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (static, "--env-id Foo", f"static: env_id must be one of {', '.join(genenv.env_ids())}, got 'Foo'"),
        (static, "--step 0", "static: step must be above 0, got 0.0"),
        (search, "--budget 10", "search: budget must be at least 4304 images for one generation, got 10"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_two(monkeypatch, capsys, module, options, message):
    monkeypatch.setattr("sys.argv", [module.__file__, *options.split()])
    assert main(module.Config, module.run, module.__doc__) == 2
    assert capsys.readouterr().err.split("\n") == [message, ""]


@pytest.mark.parametrize("error", [OSError, ImportError, gym.error.Error])
def test_every_expected_error_is_one_line(monkeypatch, capsys, error):
    def run(task):
        raise error("two\nlines")

    monkeypatch.setattr("sys.argv", ["x.py"])
    assert main(Task, run, None) == 2
    assert capsys.readouterr().err == "x: two lines\n"


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_keyword_arguments_must_be_a_json_object(text):
    with pytest.raises(ValueError, match="env_kwargs must be a JSON object"):
        parse_json(text)


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
