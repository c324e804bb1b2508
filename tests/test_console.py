"""How every command ends."""

import subprocess
import sys

import pytest

from genenv.console import exit_status


def failing(error):
    def work():
        raise error

    return work


def test_a_users_mistake_is_one_line_and_status_2(capsys):
    mistake = ValueError("run must be a run directory,\n  got [x]")
    assert exit_status(failing(mistake), "genenv play") == 2
    assert capsys.readouterr().err == "genenv play: run must be a run directory, got [x]\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        exit_status(failing(ZeroDivisionError()))


@pytest.mark.parametrize("status", [None, 0, 1])
def test_a_status_of_its_own_is_the_commands(status):
    assert exit_status(lambda: status) == (status or 0)


def test_an_interrupted_command_says_what_is_left(capsys):
    assert exit_status(failing(KeyboardInterrupt()), "search", lambda: "; a.json holds 3") == 130
    assert capsys.readouterr().err == "search: interrupted; a.json holds 3\n"


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_mistake(lines):
    code = f"from genenv.console import exit_status as e; import sys; sys.exit(e(lambda: print('x\\n' * {lines})))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        assert (errors.read(), process.wait()) == ("", 141)
