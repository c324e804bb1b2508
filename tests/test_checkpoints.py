import errno
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from genenv import checkpoints
from genenv.checkpoints import (
    MANIFEST,
    CheckpointError,
    load_state,
    load_tensors,
    save_tensors,
    sha256,
    torch_device,
    write_text,
)
from genenv.tiers import backbone_folder, load_part, write_manifest
from genenv.tiers.digits import DIGITS


@pytest.fixture
def zoo(tmp_path):
    """A folder such as `genenv zoo build` writes."""
    folder = tmp_path / "zoo"
    folder.mkdir()
    for path in backbone_folder("digits").glob("*.safetensors"):
        shutil.copy(path, folder)
    write_manifest(folder)
    return folder


def test_a_folder_of_the_zoo_is_a_backbone(zoo):
    expected = gym.make("AdaGen/MaskGIT-v0").unwrapped.sampler.network.state_dict()
    found = gym.make("AdaGen/MaskGIT-v0", backbone=str(zoo)).unwrapped.sampler.network.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("part", DIGITS.parts)
def test_a_loaded_network_is_frozen(part):
    model = load_part(part, "digits")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_missing_file_is_named_with_its_remedy(zoo):
    (zoo / "vq.safetensors").unlink()
    with pytest.raises(
        CheckpointError, match=r"vq\.safetensors is missing; reinstall genenv, or rebuild the folder with"
    ):
        gym.make("AdaGen/MaskGIT-v0", backbone=str(zoo))


def test_a_changed_file_is_refused_with_both_hashes(zoo):
    path = zoo / "maskgit.safetensors"
    expected = sha256(path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        CheckpointError, match=rf"maskgit\.safetensors has sha256 {sha256(path)}, expected {expected}"
    ):
        gym.make("AdaGen/MaskGIT-v0", backbone=str(zoo))


@pytest.mark.parametrize("size", [0, 4, 100, -1])
def test_a_truncated_file_is_refused(zoo, size):
    path = zoo / "vq.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    (zoo / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match=r"vq\.safetensors is not a readable safetensors file"):
        load_tensors(path)


@pytest.mark.parametrize("change", ["shape", "missing", "surplus"])
def test_tensors_of_another_network_are_refused(zoo, change):
    path = zoo / "vq.safetensors"
    tensors = load_tensors(path)
    name = next(iter(tensors))
    if change == "shape":
        tensors[name] = tensors[name][..., :1].repeat_interleave(3, -1)
    elif change == "missing":
        del tensors[name]
    else:
        tensors["other"] = torch.zeros(1)
    save_tensors(tensors, path)
    write_manifest(zoo)
    blamed = "other" if change == "surplus" else name
    with pytest.raises(CheckpointError, match=rf"(?s)vq\.safetensors does not fit DigitsVQ: .*{blamed}"):
        load_part("vq", str(zoo))


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"is not a folder with a manifest\.json; make one with `genenv zoo build"
    ):
        load_part("vq", str(tmp_path))


def test_a_network_that_a_backbone_has_not_is_refused():
    with pytest.raises(
        ValueError, match="backbone 'digits' of the tier 'digits' has no 'vae'; it has vq, maskgit, "
    ):
        load_part("vae", "digits")


@pytest.mark.parametrize(
    ("write", "read"),
    [
        (
            lambda path: save_tensors({"x": torch.ones(2)}, path),
            lambda path: load_tensors(path)["x"].tolist(),
        ),
        (lambda path: write_text(path, "[1.0, 1.0]"), lambda path: eval(path.read_text())),
    ],
    ids=["tensors", "text"],
)
def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch, write, read):
    path = tmp_path / "new" / "file"
    write(path)
    assert [p.name for p in path.parent.iterdir()] == ["file"]

    def killed(source, target):
        assert Path(source).is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints.os, "replace", killed)
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        write(path)
    assert path.read_bytes() == before
    assert read(path) == [1.0, 1.0]


def test_tensors_come_back_as_they_were_saved(tmp_path):
    tensors = {"a": torch.randn(3, 4).T, "b": torch.arange(5)}
    save_tensors(tensors, tmp_path / "x.safetensors")
    loaded = load_tensors(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], value) for name, value in tensors.items())


@pytest.mark.parametrize(
    "name", ["cuda:99", "meta", "mps:7", "hpu", "privateuseone", "xla", "gpu", "", "cpu:-2"]
)
def test_a_device_that_is_not_there_or_holds_no_numbers_is_refused(name):
    with pytest.raises(
        ValueError, match=rf"device '{name}' cannot be used here: .*; use device='cpu'"
    ) as found:
        torch_device(name)
    assert len(str(found.value)) < 500


def test_a_hash_that_cannot_be_recorded_does_not_stop_the_weights(tmp_path, monkeypatch):
    (tmp_path / "weights.pt").write_bytes(b"weights")

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    _, record = checkpoints.check_recorded(tmp_path / "weights.pt")
    monkeypatch.setattr(checkpoints, "write_text", read_only)
    record()
    assert not (tmp_path / "recorded_sha256.json").exists()


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [("vq", "decoder.0.weight", torch.nan), ("maskgit", None, torch.inf), ("vq", "codebook", -torch.inf)],
)
def test_weights_that_are_not_finite_are_refused_by_name(zoo, part, name, value):
    path = zoo / f"{part}.safetensors"
    tensors = load_tensors(path)
    name = name or next(n for n, v in tensors.items() if v.is_floating_point())
    tensors[name].view(-1)[3] = value
    save_tensors(tensors, path)
    write_manifest(zoo)
    with pytest.raises(
        CheckpointError, match=rf"{part}\.safetensors: {name} must be finite, got -?(nan|inf)"
    ):
        load_part(part, str(zoo))


def test_a_mask_of_attention_may_hold_minus_infinity():
    model = torch.nn.Linear(2, 2)
    model.register_buffer("mask", torch.zeros(2, 2))
    state = model.state_dict() | {"mask": torch.full((2, 2), -torch.inf).triu(1)}
    load_state(model, state, Path("x.pt"))
    assert model.mask.isinf().sum() == 1
    for wrong in (torch.nan, torch.inf):
        with pytest.raises(CheckpointError, match=r"x\.pt: mask must be finite, got (nan|inf)"):
            load_state(model, state | {"mask": torch.full((2, 2), wrong)}, Path("x.pt"))


def test_weights_that_the_manifest_does_not_name_are_refused(zoo):
    manifest = json.loads((zoo / MANIFEST).read_text())
    del manifest["vq.safetensors"]
    write_text(zoo / MANIFEST, json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"vq\.safetensors is not in .*manifest\.json; reinstall"):
        load_part("vq", str(zoo))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not readable JSON"),
        ("[]", "must hold a JSON object, got list"),
        ("\xff", "is not readable JSON"),
    ],
)
def test_a_damaged_manifest_is_named(zoo, content, message):
    (zoo / MANIFEST).write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=rf"manifest\.json {message}"):
        load_part("vq", str(zoo))


def replace_torch(path):
    with checkpoints.replacing(path) as partial:
        torch.save({"x": torch.ones(10**6)}, partial)


WRITERS = {
    "text": lambda path: write_text(path, "x" * 10**6),
    "tensors": lambda path: save_tensors({"x": torch.ones(10**6)}, path),
    "torch": replace_torch,
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_full_disk_is_told_in_one_line_and_the_old_file_stays(tmp_path, full_disk, write):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match=f"^{re.escape(str(path))} could not be written: [^\n]+$"):
        write(path)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_an_error_that_is_not_the_disk_s_stays_what_it_is(tmp_path):
    for error in (RuntimeError("of the network"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")):
        with pytest.raises(type(error)) as caught, checkpoints.replacing(tmp_path / "x"):
            raise error
        assert caught.value is error


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="names open files by /proc")
def test_what_is_written_is_on_the_disk_before_its_name_changes(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor):
        calls.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        fsync(descriptor)

    monkeypatch.setattr(checkpoints.os, "fsync", synced)
    monkeypatch.setattr(checkpoints.os, "replace", lambda a, b: calls.append("rename") or replace(a, b))
    write_text(tmp_path / "x", "text")
    assert calls == [f"x.{os.getpid()}.partial", "rename", tmp_path.name]


@pytest.mark.skipif(os.name == "nt", reason="asks the descriptor by fcntl")
def test_a_file_is_flushed_by_a_descriptor_that_may_write(tmp_path, monkeypatch):
    import fcntl

    modes, fsync = [], os.fsync

    def synced(descriptor):
        modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        fsync(descriptor)

    monkeypatch.setattr(checkpoints.os, "fsync", synced)
    write_text(tmp_path / "x", "text")
    assert modes == [os.O_RDWR, os.O_RDONLY]  # the file, and its directory


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f"x[1].json.{dead.pid}.partial"
    kept = [
        tmp_path / f"x[1].json.{os.getppid()}.partial",  # of a process that lives
        tmp_path / f"y.json.{dead.pid}.partial",  # of another file
        tmp_path / "x[1].json.old.partial",  # not ours
    ]
    for path in (left, *kept):
        path.write_text("half")
    write_text(tmp_path / "x[1].json", "{}")
    assert {p.name for p in tmp_path.iterdir()} == {"x[1].json", *(p.name for p in kept)}
