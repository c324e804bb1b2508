import errno
import shutil
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from genenv import checkpoints
from genenv.checkpoints import (
    MANIFEST,
    CheckpointError,
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


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match=r"device 'cuda:99' cannot be used here: .*; use device='cpu'"):
        torch_device("cuda:99")


def test_a_hash_that_cannot_be_recorded_does_not_stop_the_weights(tmp_path, monkeypatch):
    (tmp_path / "weights.pt").write_bytes(b"weights")

    def read_only(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    _, record = checkpoints.check_recorded(tmp_path / "weights.pt")
    monkeypatch.setattr(checkpoints, "write_text", read_only)
    record()
    assert not (tmp_path / "recorded_sha256.json").exists()
