import base64
import json
import os
import re
from html.parser import HTMLParser

import pytest

from genenv.viz.report import PICTURES, read_records, write_report

ROWS = [
    {"name": "hand-crafted", "fid": 64.1, "precision": 0.91, "recall": 0.5, "accuracy": 0.962, "images": 0},
    {"name": "learned", "fid": 24.32, "precision": 0.86, "recall": 0.74, "accuracy": 0.97, "images": 30720},
]
COMMAND = "python -m agents.adagen --seed 0 --out 'runs/a & b'"
PIXELS = {name: f"\x89PNG {name}".encode("latin-1") for name in PICTURES}


@pytest.fixture
def run_dir(tmp_path):
    """Returns a run directory with everything in it."""
    records = [{"iteration": i, "images": 256 * (i + 1), "reward": 0.1 * i} for i in range(3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    summary = {
        "env_id": "AdaGen/MaskGIT-v0",
        "verdict": "FID < 25 & falling.",
        "rows": ROWS,
        "command": COMMAND,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    (tmp_path / "config.json").write_text(json.dumps({"seed": 0, "note": "<script>alert('x')</script>"}))
    for name, data in PIXELS.items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


class Page(HTMLParser):
    """Collects the cells, images, attributes and text of a page, and checks that its elements are closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.bold: list[str] = []
        self.text = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data
        if "strong" in self.open:
            self.bold.append(data)


def report(run_dir) -> str:
    return write_report(run_dir, "A run").read_text(encoding="utf-8")


def test_the_report_embeds_every_picture_and_refers_to_nothing_outside(run_dir):
    page = report(run_dir)
    links = Page(page).links
    embedded = [base64.b64decode(link.partition("base64,")[2]) for link in links if "image/png" in link]
    assert embedded == list(PIXELS.values())
    assert all(link.startswith("data:") for link in links)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script", page)


def test_the_report_says_the_verdict_the_command_and_the_size_of_the_run(run_dir):
    text = Page(report(run_dir)).text
    assert "FID < 25 & falling." in text
    assert COMMAND in text
    assert "AdaGen/MaskGIT-v0 · 3 iterations · 768 training images" in text
    assert re.search(r"torch \d+\.\d+.*Python 3\.", text)


def test_the_comparison_marks_directions_and_the_best_of_each_column(run_dir):
    page = Page(report(run_dir))
    assert page.rows[:3] == [
        ["schedule", "FID ↓", "precision ↑", "recall ↑", "accuracy ↑", "training images"],
        ["hand-crafted", "64.10", "0.910", "0.500", "96.2%", "0"],
        ["learned", "24.32", "0.860", "0.740", "97.0%", "30,720"],
    ]
    assert page.bold == ["0.910", "24.32", "0.740", "97.0%"]


def test_values_that_are_missing_are_shown_and_never_best(run_dir):
    rows = [{"name": "a", "fid": None, "kid": 0.5}, {"name": "b", "fid": 3.0, "new_metric": 0.12345}]
    (run_dir / "summary.json").write_text(json.dumps({"rows": rows}))
    page = Page(report(run_dir))
    assert page.rows[:3] == [
        ["schedule", "FID ↓", "KID ↓", "new metric"],
        ["a", "–", "0.5000", "–"],  # noqa: RUF001
        ["b", "3.00", "–", "0.123"],  # noqa: RUF001
    ]
    assert page.bold == []


def test_what_a_run_was_given_is_text_in_its_report(run_dir):
    page = write_report(run_dir, "<i>title</i> $verdict").read_text(encoding="utf-8")
    parsed = Page(page)
    assert "<script" not in page
    assert "<i>" not in page
    assert ["note", "<script>alert('x')</script>"] in parsed.rows
    assert "<i>title</i> $verdict" in parsed.text


def test_the_versions_are_those_of_the_run_where_it_recorded_them(run_dir):
    (run_dir / "summary.json").write_text(json.dumps({"versions": {"torch": "1.2.3", "solver": "0.7"}}))
    text = Page(report(run_dir)).text
    assert "torch 1.2.3" in text
    assert "solver 0.7" in text


def test_the_same_run_gives_the_same_report(run_dir):
    assert report(run_dir) == report(run_dir)


@pytest.mark.parametrize("missing", PICTURES)
def test_a_missing_picture_is_named_and_the_others_are_kept(run_dir, missing):
    (run_dir / missing).unlink()
    page = Page(report(run_dir))
    assert f"This run has no {missing}." in page.text
    assert sum("image/png" in link for link in page.links) == 2


def test_an_interrupted_run_gets_a_report_that_says_what_is_missing(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0, "reward": 1.0}\n')
    text = Page(report(tmp_path)).text
    assert "No verdict yet" in text
    assert "no comparison" in text
    assert "This run has no config.json." in text
    assert "has not recorded its command" in text


def test_a_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"metrics\.jsonl is missing: .* is not the directory of a training run"
    ):
        write_report(tmp_path, "A run")
    assert list(tmp_path.iterdir()) == []


def test_a_last_line_that_a_killed_run_left_unfinished_is_skipped(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n{"iteration": 1}\n{"iterat')
    assert read_records(tmp_path) == [{"iteration": 0}, {"iteration": 1}]


def test_a_last_line_without_its_line_end_is_kept(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"iteration": 0}\n{"iteration": 1}')
    assert read_records(tmp_path) == [{"iteration": 0}, {"iteration": 1}]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "metrics.jsonl",
            '{"iteration": 0}\n{"iter\n{"iteration": 2}\n',
            r"metrics\.jsonl, line 2 is not readable JSON",
        ),
        ("config.json", "{", r"config\.json is not readable JSON"),
        ("summary.json", "[1]", r"summary\.json must hold a JSON object, got list"),
        ("summary.json", '{"rows": 3}', r"summary\.json: 'rows' must be a list, got '3'"),
        ("summary.json", '{"rows": [{"name": "a"}, 7]}', r"summary\.json: 'rows' must .* got '7' as entry 1"),
        ("summary.json", '{"rows": [{"fid": 1}]}', r"must hold objects with a 'name', got .* as entry 0"),
        ("summary.json", '{"command": ["a"]}', r"summary\.json: 'command' must be a text"),
        ("summary.json", '{"versions": "1.2"}', r"summary\.json: 'versions' must be an object, got '1.2'"),
        (
            "metrics.jsonl",
            '{"iteration": 0}\n{"reward": 1.0}\n',
            r"metrics\.jsonl, line 2 has no whole 'iteration'",
        ),
        (
            "metrics.jsonl",
            '{"iteration": 0}\n{"reward": 1.0}',
            r"metrics\.jsonl, line 2 has no whole 'iteration'",
        ),
        (
            "metrics.jsonl",
            '{"iteration": 0, "reward": "high"}\n',
            r"metrics\.jsonl, line 1: 'reward' must be a number, got 'high'",
        ),
        ("metrics.jsonl", '{"iteration": true}\n', r"line 1 has no whole 'iteration'"),
        (
            "metrics.jsonl",
            '{"iteration": 0}\n3\n',
            r"metrics\.jsonl, line 2 must hold a JSON object, got int",
        ),
        (
            "metrics.jsonl",
            '{"iteration": 0}\n{"iteration": 1, "reward": NaN}\n',
            r"metrics\.jsonl, line 2: reward must be finite, got nan",
        ),
        (
            "metrics.jsonl",
            '{"iteration": 0, "images": 1' + 400 * "0" + "}\n",
            r"metrics\.jsonl, line 1: images must be finite, got inf",
        ),
        ("metrics.jsonl", 9999 * "[" + "\n", r"metrics\.jsonl, line 1 .* nested too deeply"),
        ("summary.json", '{"rows": [{"name": "a", "fid": Infinity}]}', r"summary\.json: fid must be finite"),
        ("config.json", '{"seed": 1, "seed": 2}', r"config\.json: seed is there twice"),
    ],
)
def test_a_damaged_file_is_named(run_dir, name, content, message):
    (run_dir / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        write_report(run_dir, "A run")


@pytest.mark.parametrize("name", ["metrics.jsonl", "summary.json", "config.json"])
def test_a_file_that_is_no_text_is_named(run_dir, name):
    (run_dir / name).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=rf"{name}(, line 1)? is not readable JSON: 'utf-8' codec"):
        write_report(run_dir, "A run")


def test_a_failed_write_leaves_the_old_report_and_nothing_else(run_dir, monkeypatch):
    before = report(run_dir)
    names = sorted(path.name for path in run_dir.iterdir())
    (run_dir / "samples.png").unlink()

    def full_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_report(run_dir, "Another title")
    assert sorted(path.name for path in run_dir.iterdir()) == [n for n in names if n != "samples.png"]
    assert (run_dir / "report.html").read_text(encoding="utf-8") == before
