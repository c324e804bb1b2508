import json

import pytest

from agents.console import Rows, cell, say


def test_brackets_in_a_path_are_printed_as_they_are(capsys):
    say("report: a[/b]/[red]x")
    assert capsys.readouterr().out == "report: a[/b]/[red]x\n"


def test_a_metric_that_a_judge_does_not_have_is_a_dash():
    assert [cell({"fid": 1.0}, name, ".1f") for name in ("fid", "recall")] == ["1.0", "-"]


@pytest.mark.parametrize("names", [("a[/b]",), ("lambda 0", "lambda 0.5", "lambda 1")])
def test_a_row_is_told_and_saved_as_soon_as_it_is_known(tmp_path, capsys, names):
    out = tmp_path / "deep" / "rows.json"
    rows = Rows(out)
    for done, name in enumerate(names):
        rows.add(name, {"recall": 0.5, "fid": done, "kid": 2.0})
        assert capsys.readouterr().err == f"{name}: fid {done:.3f}, recall 0.500\n"
        saved = json.loads(out.read_text())
        assert list(saved) == list(names[: done + 1])
        assert saved[name] == {"recall": 0.5, "fid": done, "kid": 2.0}


def test_rows_that_no_file_is_named_for_are_told_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Rows().add("a", {"w2": 0.25})
    assert capsys.readouterr().err == "a: w2 0.250\n"
    assert list(tmp_path.iterdir()) == []


def test_rows_are_not_saved_in_a_folder(tmp_path):
    with pytest.raises(ValueError, match=f"out must be a file, got the folder {tmp_path}"):
        Rows(tmp_path)
