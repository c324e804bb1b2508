import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest

from agents import scope_table
from agents.adascope import Config, train
from agents.scope_table import Arguments, Curve, cell, less, main, read_curve, row_of

SMALL = Config(
    num_groups=2,
    group_size=2,
    chunk_size=4,
    num_steps=4,
    num_iterations=3,
    scope="full",
    reward="classifier",
    semantic="classifier",
    eval_interval=3,
    eval_images=70,
)


def curve(rewards, flops, seconds=None, share=1.0):
    costs = {"flops": flops, "seconds": seconds or flops}
    return Curve(SMALL, rewards, costs, share, {0: {"fid": 1.0}, len(rewards): {"fid": 0.5, "recall": 0.8}})


def test_costs_are_those_of_reaching_what_the_full_scope_ended_with():
    full = curve([0.1, 0.3, 0.5, 0.4], [10, 20, 30, 40], [1, 2, 3, 4])
    part = curve([0.2, 0.4, 0.6, 0.7], [4, 8, 12, 16], [1, 2, 3, 4], share=0.4)
    assert row_of(full, full) == {
        "share": 1.0, "iteration": 1.0, "training": 0.4, "seconds": 1.0, "flops": 1.0, "fid": 0.5, "recall": 0.8,
    }  # fmt: skip
    found = row_of(part, full)  # both reach 0.4: at the second iteration, at the third
    assert found["flops"] == pytest.approx(8 / 30)
    assert found["seconds"] == pytest.approx(2 / 3)
    assert found["share"] == 0.4
    assert "flops" not in row_of(part, None)
    slow = row_of(curve([0.1, 0.1, 0.2, 0.3], [1, 2, 3, 4]), full)
    assert slow["flops"] == math.inf


def test_held_out_metrics_are_compared_at_equal_reward():
    held_out = {
        0: {"reward": 0.5, "fid": 1.0},
        3: {"reward": 0.7, "fid": 3.0},
        4: {"reward": 0.6, "fid": 9.0},
    }
    run = dataclasses.replace(curve([0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4]), held_out=held_out)
    assert run.at(0.55)["fid"] == pytest.approx(1.5)
    assert run.at(0.7)["fid"] == 3.0
    assert run.at(0.4)["fid"] == 1.0
    with pytest.raises(ValueError, match=r"at most the highest of the run, 0\.7, got 0\.8"):
        run.at(0.8)
    held_out = {0: {"reward": 0.5, "fid": 1.0}, 3: {"reward": 0.65, "fid": 7.0}}
    full = dataclasses.replace(curve([0.2, 0.3, 0.4], [1, 2, 3]), held_out=held_out)
    row = row_of(run, full)
    assert less(run, full) == {"fid": pytest.approx(2.5 - 7.0)}
    full = dataclasses.replace(
        full, held_out={0: {"reward": 0.5, "fid": 1.0}, 3: {"reward": 0.8, "fid": 7.0}}
    )
    assert less(run, full) == {"fid": pytest.approx(3.0 - 5.0)}  # at 0.7, which is the highest of both
    assert (row["training"], row["fid"]) == (0.3, 3.0)  # after as many images
    assert row["flops"] == pytest.approx(4 / 3)  # and on, until it is there
    assert (row_of(run, None)["training"], row_of(run, None)["fid"]) == (0.4, 9.0)
    assert "fid" not in row_of(run, curve([0.2, 0.3], [1, 2]))  # nobody looked after two iterations
    unseen = dataclasses.replace(run, held_out={0: {}})
    assert row_of(unseen, unseen)["training"] == 0.4  # nobody ever did


def test_a_cell_says_how_many_runs_got_there():
    assert cell([1.0, 1.0]) == "1.000 ± 0.000"
    assert cell([0.5, math.inf]).startswith("1 of 2, 0.5")
    assert cell([math.inf]) == "0 of 1"


def test_finished_runs_are_compared_by_host_and_scope(tmp_path, capsys):
    for scope in ("full", "fixed:0:2"):
        for seed in (0, 1):
            config = dataclasses.replace(SMALL, scope=scope, seed=seed)
            train(config, tmp_path / f"{scope.replace(':', '-')}-{seed}")
    runs = tuple(sorted(path for path in tmp_path.iterdir()))
    read = read_curve(runs[-1], window=2)
    records = [json.loads(line) for line in (runs[-1] / "metrics.jsonl").read_text().splitlines()][1:]
    rewards = [record["reward"] for record in records]
    assert read.reward == pytest.approx([rewards[0], sum(rewards[:2]) / 2, sum(rewards[1:]) / 2])
    assert read.costs["flops"] == [record["flops"] for record in records]
    assert read.last["reward"] == records[-1]["held_out/reward"]
    capsys.readouterr()
    main(Arguments(runs, json=tmp_path / "table.json"))
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines()]
    assert [row[: 1 + (row[0] == "ddpo")] for row in rows if row and row[-1] == "2"] == [
        ["base"],
        ["ddpo", "fixed:0:2"],
        ["ddpo", "full"],
        ["ddpo", "fixed:0:2"],  # less the full one's
    ]
    rows = json.loads((tmp_path / "table.json").read_text())
    assert {row["scope"]: row["share"] for row in rows} == {"full": 1.0, "fixed:0:2": 0.5}
    assert all(row["flops"] == 1.0 for row in rows if row["scope"] == "full")
    assert "no full run" not in " ".join(text.split())
    main(Arguments(runs[:1]))
    text = " ".join(capsys.readouterr().out.split())
    assert f"no full run of the same reward, host, seed and generator to compare with: {runs[0]}" in text
    copy = tmp_path / "copy"
    shutil.copytree(runs[0], copy)
    with pytest.raises(ValueError, match=r"fixed-0-2-0 and .*copy would be one row, and differ in nothing"):
        main(Arguments((runs[0], copy)))


def test_runs_that_cannot_share_a_row_or_a_table_are_refused(tmp_path, capsys):
    runs = {}
    for name, changes in {
        "full": {"scope": "full"},
        "steps": {"scope": "full", "num_steps": 6, "seed": 1},
        "less": {"scope": "full", "eval_images": 80, "seed": 1},
        "long": {"scope": "fixed:0:2", "num_iterations": 4, "eval_interval": 4},
    }.items():
        runs[name] = tmp_path / name
        train(dataclasses.replace(SMALL, **changes), runs[name])
    with pytest.raises(ValueError, match=r"full and .*steps would be one row, and differ in num_steps"):
        main(Arguments((runs["full"], runs["steps"])))
    with pytest.raises(ValueError, match=r"on as many images each \(--eval-images\), got \[70, 80\]"):
        main(Arguments((runs["full"], runs["less"])))
    capsys.readouterr()
    main(Arguments((runs["full"], runs["long"])))
    text = " ".join(capsys.readouterr().out.split())
    assert f"no evaluation after as many images as the full run (--eval-interval): {runs['long']}" in text


def test_what_is_not_reached_is_null_in_json(tmp_path, monkeypatch):
    runs = {Path("full"): curve([0.1, 0.5], [1, 2]), Path("slow"): curve([0.1, 0.2], [1, 2])}
    part = dataclasses.replace(SMALL, scope="fixed:0:2")
    runs[Path("slow")] = dataclasses.replace(runs[Path("slow")], config=part)
    monkeypatch.setattr(scope_table, "read_curve", lambda run, *rest: runs[run])
    main(Arguments(tuple(runs), json=tmp_path / "table.json"))
    rows = json.loads((tmp_path / "table.json").read_text(), parse_constant=pytest.fail)
    assert [(row["scope"], row["seed"], row["flops"]) for row in rows] == [
        ("full", 0, 1.0),
        ("fixed:0:2", 0, None),
    ]


def test_an_unfinished_run_is_named(tmp_path, monkeypatch):
    run = tmp_path / "run"
    train(SMALL, run)
    (run / "summary.json").unlink()
    with pytest.raises(ValueError, match=r"run is not finished: continue it with python -m agents\.adascope"):
        read_curve(run, 5)
    with pytest.raises(ValueError, match="runs must name at least one run directory"):
        scope_table.main(Arguments(()))
