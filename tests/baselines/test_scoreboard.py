"""The tables of every method."""

import json
import math
import re

import pytest

from baselines import scoreboard
from baselines.common import Result, write_results
from baselines.scoreboard import collect, main, markdown, read
from genenv.metrics.names import SUMMARY

ID = "AdaGen/MaskGIT-v0"


def result(method: str, seed: int, fid: float, env_id: str = ID, num_images: int = 2000, **kwargs) -> Result:
    metrics = dict.fromkeys(SUMMARY, 0.5) | {"fid": fid}
    return Result(method, env_id, kwargs, seed, 4, num_images, "digits", metrics, 1000, 2.0, {})


def written(tmp_path, *results: Result, name: str = "results.json"):
    write_results(tmp_path / name, results)
    return tmp_path / name


def summary(**changes) -> dict:
    """Returns what an agent writes."""
    learned = {"name": "learned", "images": 512} | dict.fromkeys(SUMMARY, 0.25)
    return {
        "env_id": ID,
        "env_kwargs": {"backbone": "digits", "num_steps": 4, "observe": ["features"], "device": "cuda"},
        "decisions": 4,
        "seed": 3,
        "seconds": 60.0,
        "agent": "adagen",
        "rows": [{"name": "hand-crafted", "images": 0} | dict.fromkeys(SUMMARY, 0.75), learned],
        "evaluations": {"learned": {"num_images": 2000, "protocol": "digits"}},
    } | changes


def dumped(tmp_path, content: object, name: str = "summary.json"):
    (tmp_path / name).write_text(json.dumps(content))
    return tmp_path / name


def evaluation(**changes) -> dict:
    """Returns what `genenv evaluate --json` writes."""
    return {
        "name": "hand-crafted",
        "env_id": ID,
        "env_kwargs": {"backbone": "digits"},
        "decisions": 4,
        "num_images": 2000,
        "protocol": "digits",
        "runs": [{"fid": 3.0, "recall": 0.5}, {"fid": 3.2, "recall": 0.4}],
    } | changes


def test_methods_stand_from_worst_to_best_fid_with_their_intervals(tmp_path):
    file = written(tmp_path, result("good", 0, 1.0), result("good", 1, 1.2), result("bad", 0, 5.0))
    title, _, *rows = markdown(collect([file])).splitlines()
    assert title == "AdaGen/MaskGIT-v0, backbone digits, 4 decisions, 2,000 held-out images, protocol digits"
    assert [row.split(" | ")[0] for row in rows[2:]] == ["| bad", "| good"]
    assert "1.100 ± 1.271" in rows[3]  # t(0.975, 1) = 12.706, times 0.1414 / sqrt(2)
    assert rows[2].endswith("| 1,000 | 2 | 1 |")


def test_an_id_and_its_module_are_the_id(tmp_path):
    files = [
        written(tmp_path, result("a", 0, 1.0, "Other/Env-v0", backbone="theirs")),
        dumped(tmp_path, summary(env_id="other_module:Other/Env-v0", env_kwargs={"backbone": "theirs"})),
    ]
    assert len({row.task for row in collect(files)}) == 1


def test_a_bar_in_a_name_ends_no_cell(tmp_path):
    assert r"| lr 1\|3 | 1.000 |" in markdown(collect([written(tmp_path, result("lr 1|3", 0, 1.0))]))


@pytest.mark.parametrize(("name", "method"), [(None, "adagen, learned"), ("wide, 3e-4", "wide, 3e-4")])
def test_a_run_directory_gives_its_learned_policy(tmp_path, name, method):
    (row,) = read(dumped(tmp_path, summary(name=name)))
    assert (row.method, row.seed, row.images, row.seconds) == (method, 3, 512, 60.0)
    assert row.metrics["fid"] == 0.25


def test_an_evaluation_gives_a_row_for_each_repetition(tmp_path):
    rows = read(dumped(tmp_path, evaluation(), "found.json"))
    assert [(row.method, row.seed, row.metrics["fid"]) for row in rows] == [
        ("hand-crafted", 0, 3.0),
        ("hand-crafted", 1, 3.2),
    ]
    assert math.isnan(rows[0].images)
    assert re.search(r"\| hand-crafted \| 3.100 ± .* \| - \| - \| 2 \|", markdown(rows))


def test_baselines_runs_and_evaluations_of_one_task_share_a_table(tmp_path):
    """How a policy sees and acts, where it ran, and defaults that are said or not, make no other task."""
    rows = collect(
        [
            written(tmp_path, result("static", 0, 1.0, action_mode="physical", observe=["step"])),
            dumped(tmp_path, summary()),
            dumped(tmp_path, evaluation(), "found.json"),
        ]
    )
    assert len({row.task for row in rows}) == 1


@pytest.mark.parametrize(
    "other",
    [
        result("good", 0, 2.0, "Other-v0"),
        result("good", 0, 2.0, num_images=500),
        result("good", 0, 2.0, backbone="zoo/mine"),
        result("good", 0, 2.0, guidance=3.0),
    ],
    ids=["id", "images", "backbone", "option"],
)
def test_another_task_has_a_table_of_its_own(tmp_path, other):
    table = markdown(collect([written(tmp_path, result("good", 0, 1.0), other)]))
    assert table.count("| good | ") == table.count("| method |") == 2


def test_another_hand_crafted_schedule_is_the_same_task_but_not_another_generator_s_guidance(tmp_path):
    kwargs = {"guidance_weight": 0.5, "schedule": "published", "token_temperature": 1.1}
    file = written(tmp_path, result("a", 0, 1.0), result("b", 0, 2.0, **kwargs))
    assert len({row.task for row in collect([file])}) == 1
    constant = [result(m, 0, 1.0, "ART/Clock-v0", guidance_weight=w) for m, w in (("a", 0.0), ("b", 0.5))]
    assert len({row.task for row in collect([written(tmp_path, *constant)])}) == 2


def test_a_score_is_0_of_random_actions_and_1_of_the_hand_crafted_schedule(tmp_path):
    rows = [result("random", 0, 4.0), result("random", 1, 6.0), result("hand-crafted", 0, 3.0)]
    more = [result("good", 0, 2.0), result("good", 1, 1.0), result("bad", 0, 6.0)]
    lines = markdown(collect([written(tmp_path, *rows, *more)])).splitlines()
    heads, *found = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    column = heads.index("score")
    assert {cells[0]: cells[column] for cells in found} == {
        "random": "0.00",
        "hand-crafted": "1.00",
        "good": "1.75",
        "bad": "-0.50",
    }


@pytest.mark.parametrize("names", [("random", "good"), ("hand-crafted", "good"), ("random", "hand-crafted")])
def test_there_is_no_score_where_it_has_no_two_ends(tmp_path, names):
    table = markdown(collect([written(tmp_path, *(result(name, 0, 2.0) for name in names))]))
    assert "score" not in table


def test_the_number_of_steps_is_said_by_the_decisions(tmp_path):
    """VAR's None is its own 4 scales."""
    file = written(tmp_path, result("a", 0, 1.0, num_steps=None), result("b", 0, 1.0, num_steps=4))
    assert len({row.task for row in collect([file])}) == 1


def test_the_same_repetition_twice_is_refused(tmp_path):
    first = written(tmp_path, result("good", 0, 1.0), result("good", 1, 1.2), name="first.json")
    second = written(tmp_path, result("good", 2, 1.0), result("good", 1, 3.0), name="second.json")
    with pytest.raises(
        ValueError,
        match=r"first\.json and .*second\.json both hold 'good' with seed 1 on AdaGen/MaskGIT-v0, backbone .*; "
        "make one of them again with another --name",
    ):
        collect([first, second])


def test_what_two_files_measured_alike_counts_once(tmp_path):
    first = written(
        tmp_path, result("hand-crafted", 0, 3.0), result("hand-crafted", 1, 3.2), name="first.json"
    )
    metrics = dict.fromkeys(SUMMARY, 0.5)
    runs = [metrics | {"fid": fid} for fid in (3.0, 3.2, 3.4)]
    second = dumped(tmp_path, evaluation(runs=runs), "second.json")
    assert [row.seed for row in collect([first, second])] == [0, 1, 2]


def test_two_configurations_of_an_agent_stand_side_by_side_under_their_names(tmp_path):
    files = [dumped(tmp_path, summary(name=name), f"{name}.json") for name in ("wide", "narrow")]
    assert [row.method for row in collect(files)] == ["wide", "narrow"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {key: value for key, value in summary().items() if key != "agent"},
            "finished run, but lacks 'agent'",
        ),
        ({key: value for key, value in summary().items() if key != "decisions"}, "but lacks 'decisions'"),
        (summary(rows=[]), "must be the record of a finished run, but lacks "),
        (evaluation(runs=None), "must be the record of a finished evaluation, but lacks "),
        ({"fid": 3}, "must be the record of a finished evaluation, but lacks 'env_id'"),
        (
            evaluation(runs=[{"recall": 0.5}]),
            "must be the record .* metrics must be an object with fid, got {'re",
        ),
        (evaluation(runs={"a": 1}), "must be the record .* metrics must be an object with fid, got a"),
        (evaluation(runs=[{"fid": "3"}]), "must be the record of a finished evaluation, got fid 3"),
        (evaluation(env_kwargs=3), "must be the record of a finished evaluation, but lacks "),
        (evaluation(num_images="many"), "must be the record of a finished evaluation, got num_images many"),
        (evaluation(protocol=None), "must be the record of a finished evaluation, got protocol None"),
        (evaluation(name=["a"]), r"must be the record of a finished evaluation, got name \['a'\]"),
        (summary(seed=[1]), r"must be the record of a finished run, got seed \[1\]"),
        (summary(seconds="1"), "must be the record of a finished run, got seconds 1"),
        (
            [vars(result("a", 0, 1.0)) | {"metrics": [1]}],
            "must be the record of a finished baseline: its metrics",
        ),
        ([{"fid": 3}], "must hold the results of a baseline: entry 0 has no 'decisions'"),
    ],
)
def test_a_file_that_holds_something_else_is_named(tmp_path, content, message):
    with pytest.raises(ValueError, match=rf"x\.json {'.*' if message[0] != 'm' else ''}{message}"):
        read(dumped(tmp_path, content, "x.json"))


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "x.json").write_text("[{")
    with pytest.raises(ValueError, match=r"x\.json is not readable JSON"):
        read(tmp_path / "x.json")


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    file, out = written(tmp_path, result("hand-crafted", 0, 2.0)), tmp_path / "table.md"
    monkeypatch.setattr("sys.argv", ["scoreboard", str(file), "--out", str(out)])
    assert main() == 0
    assert "hand-crafted" in out.read_text()
    assert out.read_text() in capsys.readouterr().out


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [scoreboard.__file__, str(tmp_path / "nope.json")])
    assert main() == 2
    assert capsys.readouterr().err.count("\n") == 1
