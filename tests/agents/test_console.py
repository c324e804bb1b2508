from agents.console import cell, say


def test_brackets_in_a_path_are_printed_as_they_are(capsys):
    say("report: a[/b]/[red]x")
    assert capsys.readouterr().out == "report: a[/b]/[red]x\n"


def test_a_metric_that_a_judge_does_not_have_is_a_dash():
    assert [cell({"fid": 1.0}, name, ".1f") for name in ("fid", "recall")] == ["1.0", "-"]
