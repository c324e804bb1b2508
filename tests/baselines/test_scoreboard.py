"""The table of every method."""

import json

import pytest

from baselines import scoreboard
from baselines.common import METRICS, Result, main, write_results
from baselines.scoreboard import Arguments, collect, finish, markdown, read


def result(method: str, seed: int, fid: float, env_id: str = "AdaGen/MaskGIT-v0") -> Result:
    metrics = dict.fromkeys(METRICS, 0.5) | {"fid": fid}
    return Result(method, env_id, {}, seed, metrics, 1000, 2.0, {})


def test_methods_stand_from_worst_to_best_fid_with_their_intervals():
    table = markdown([result("good", 0, 1.0), result("good", 1, 1.2), result("bad", 0, 5.0)])
    rows = table.splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| bad", "| good"]
    assert "1.100 ± 1.271" in rows[1]  # t(0.975, 1) = 12.706, times 0.1414 / sqrt(2)
    assert rows[0].endswith("| 1,000 | 2 | 1 |")


def test_a_run_directory_gives_its_learned_policy(tmp_path):
    learned = {"name": "learned", "images": 512} | dict.fromkeys(METRICS, 0.25)
    summary = {
        "env_id": "AdaGen/MaskGIT-v0",
        "seed": 3,
        "seconds": 60.0,
        "agent": "adagen",
        "rows": [{"name": "hand-crafted", "images": 0} | dict.fromkeys(METRICS, 0.75), learned],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (found,) = read(tmp_path / "summary.json")
    assert (found.method, found.seed, found.images) == ("adagen, learned", 3, 512)
    assert found.metrics["fid"] == 0.25
    del summary["agent"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        ValueError, match=r"summary\.json must be the summary of a run, but it has no 'agent'"
    ):
        read(tmp_path / "summary.json")


def test_the_same_repetition_twice_is_refused(tmp_path):
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    write_results(first, [result("good", 0, 1.0), result("good", 1, 1.2)])
    write_results(second, [result("good", 2, 1.0), result("good", 1, 3.0)])
    with pytest.raises(
        ValueError,
        match=r"first\.json and .*second\.json both hold 'good' with seed 1 on AdaGen/MaskGIT-v0; "
        "pass the runs of one configuration",
    ):
        collect(Arguments((first, second)))


def test_environments_do_not_share_a_row(tmp_path):
    write_results(tmp_path / "a.json", [result("good", 0, 1.0), result("good", 0, 2.0, "Other-v0")])
    table = markdown(collect(Arguments((tmp_path / "a.json",))))
    rows = [row.split(" | ")[0] for row in table.splitlines()[2:]]
    assert rows == ["| good on Other-v0", "| good on AdaGen/MaskGIT-v0"]


def test_the_command_writes_what_it_prints(tmp_path, capsys, monkeypatch):
    file, out = tmp_path / "static.json", tmp_path / "table.md"
    write_results(file, [result("hand-crafted", 0, 2.0)])
    monkeypatch.setattr("sys.argv", ["scoreboard", str(file), "--out", str(out)])
    assert main(Arguments, collect, scoreboard.__doc__, finish) == 0
    assert "hand-crafted" in out.read_text()
    assert out.read_text() in capsys.readouterr().out


def test_a_file_that_is_not_there_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["scoreboard", str(tmp_path / "nope.json")])
    assert main(Arguments, collect, scoreboard.__doc__, finish) == 2
    assert capsys.readouterr().err.count("\n") == 1
