import pytest

from agents.command_line import plain_errors


def test_a_users_mistake_is_one_line_and_status_2(capsys):
    with pytest.raises(SystemExit) as stop, plain_errors():
        raise ValueError("run must be a run directory, got [x]")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: run must be a run directory, got [x]\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), plain_errors():
        raise ZeroDivisionError
