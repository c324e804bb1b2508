import pytest

from agents.console import cell, plain_errors, say


def test_a_users_mistake_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, plain_errors():
        raise ValueError("run must be a run directory,\n  got [x]")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: run must be a run directory, got [x]\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), plain_errors():
        raise ZeroDivisionError


def test_brackets_in_a_path_are_printed_as_they_are(capsys):
    say("report: a[/b]/[red]x")
    assert capsys.readouterr().out == "report: a[/b]/[red]x\n"


def test_a_metric_that_a_judge_does_not_have_is_a_dash():
    assert [cell({"fid": 1.0}, name, ".1f") for name in ("fid", "recall")] == ["1.0", "-"]
