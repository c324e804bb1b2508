"""Files of a run."""

import json
import os

import pytest
import torch

from agents.checkpointing import MetricsLog, load_checkpoint, save_checkpoint
from genenv.checkpoints import CheckpointError

STATE = {"iteration": 3, "policy": {"weight": torch.arange(4.0)}, "generator": torch.Generator().get_state()}


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    save_checkpoint(STATE, tmp_path / "checkpoint.pt")
    loaded = load_checkpoint(tmp_path / "checkpoint.pt")
    assert loaded["iteration"] == 3
    assert torch.equal(loaded["policy"]["weight"], STATE["policy"]["weight"])


def test_an_interrupted_write_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)

    def full_disk(state, file):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint({**STATE, "iteration": 4}, path)
    assert load_checkpoint(path)["iteration"] == 3
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is missing"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged"):
        load_checkpoint(path)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    torch.save({"generator": MetricsLog(path)}, path)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)


def test_resuming_drops_what_was_logged_after_the_checkpoint_and_a_broken_line(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for iteration in (1, 2, 3):
        log.append({"iteration": iteration, "reward": 0.5})
    with log.path.open("a") as file:
        file.write('{"iteration": 4, "rew')
    log.cut_after(2)
    assert [json.loads(line)["iteration"] for line in log.path.read_text().splitlines()] == [1, 2]
