"""The table of every method."""

import json

from baselines.common import METRICS, Result, write_results
from baselines.scoreboard import Arguments, main, markdown, read


def result(method: str, seed: int, fid: float) -> Result:
    metrics = dict.fromkeys(METRICS, 0.5) | {"fid": fid}
    return Result(method, "AdaGen/MaskGIT-v0", {}, seed, metrics, 1000, 2.0, {})


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
        "command": "python -m agents.adagen --seed 3",
        "rows": [{"name": "hand-crafted", "images": 0} | dict.fromkeys(METRICS, 0.75), learned],
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (found,) = read(tmp_path / "summary.json")
    assert (found.method, found.seed, found.images) == ("adagen, learned for each image", 3, 512)
    assert found.metrics["fid"] == 0.25


def test_the_command_writes_what_it_prints(tmp_path, capsys):
    write_results(tmp_path / "static.json", [result("hand-crafted", 0, 2.0)])
    main(Arguments((tmp_path / "static.json",), tmp_path / "table.md"))
    assert (tmp_path / "table.md").read_text() in capsys.readouterr().out
