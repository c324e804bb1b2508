import sys

import pytest

from genenv import progress as module
from genenv.progress import counting, progress


@pytest.fixture
def clock(monkeypatch):
    """Returns the time, which stands still unless it is moved."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


@pytest.mark.parametrize("seconds", [10.0, 3.0])
def test_a_log_file_gets_a_line_every_few_seconds(capsys, clock, seconds):
    with progress("grid a[/b]", seconds) as report:
        for done in range(1, 6):
            clock[0] += 0.6 * seconds
            report(done, 5000, f"best {done / 4:.2f}" if done > 2 else "")
    assert capsys.readouterr().err.splitlines() == [
        "grid a[/b]: 2 of 5,000",
        "grid a[/b]: 4 of 5,000, best 1.00",
    ]


def test_a_short_job_is_silent(capsys, clock):
    with progress("job") as report:
        clock[0] += 9.9
        report(1, 1)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar_that_takes_any_text(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr("rich.progress.Progress.update", lambda bar, job, **values: shown.append(values))
    with progress("runs/a[/b]") as report:
        report(3, 4, "[1] of 2")
    assert shown == [{"completed": 3, "total": 4, "description": r"runs/a\[/b]  [1] of 2"}]


@pytest.mark.parametrize("depth", [1, 3])
def test_a_job_inside_another_has_a_line_below_it_while_it_lasts(capsys, monkeypatch, depth):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)

    def nested(left):
        with progress(f"job {left}") as report:
            report(left, 9)
            if left:
                nested(left - 1)
            [bars] = module._SHOWN
            assert [task.description for task in bars.tasks] == [
                f"job {n}" for n in range(depth, left - 1, -1)
            ]

    for _ in range(2):
        nested(depth)
        assert module._SHOWN == []
    with pytest.raises(KeyboardInterrupt), progress("outer"), progress("inner"):
        raise KeyboardInterrupt
    assert module._SHOWN == []


def test_without_rich_a_terminal_gets_lines(capsys, monkeypatch, clock):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "rich", None)
    with progress("job", 1.0) as report:
        clock[0] += 1.0
        report(1, 2)
    assert capsys.readouterr().err == "job: 1 of 2\n"


def test_counts_are_summed_up():
    reported = []
    advance = counting(lambda *report: reported.append(report), 9)
    for count in (2, 4, 3):
        advance(count)
    assert reported == [(2, 9), (6, 9), (9, 9)]
