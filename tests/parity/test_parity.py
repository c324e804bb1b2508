"""The parity command: on the reference vectors where they lie beside this checkout, and on small ones made here."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from references import CONTEXTS, Given, maskgit_networks, maskgit_rollout, write, write_maskgit
from safetensors.torch import save_file

from genenv.parity import __main__ as parity
from genenv.parity.fixture import Record, close, equal

REFERENCE = Path(__file__).parents[3] / "shared" / "parity"
CODES, GRID, DIM, STEPS, BATCH = 8, 4, 8, 3, 2


def lines(capsys):
    return [line.split("  ") for line in capsys.readouterr().out.splitlines()]


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference vectors are not beside this checkout")
@pytest.mark.parametrize("name", [*parity.CHECKS, parity.SHAPES])
def test_the_official_vectors_are_reproduced(name, tmp_path, capsys):
    for folder in REFERENCE.iterdir():  # some fixtures refer to their neighbours
        (tmp_path / folder.name).symlink_to(folder)
    found = list(parity.results(tmp_path / name))
    assert len(found) >= 3
    assert [result for result in found if not result.ok] == []


def scipy_fid(features, mean, covariance):
    own = np.cov(features.T)
    cross = scipy.linalg.sqrtm(own @ covariance).real
    return float(((features.mean(0) - mean) ** 2).sum() + np.trace(own + covariance - 2 * cross))


@pytest.fixture
def fid_vectors(tmp_path):
    """A folder of FID vectors, computed by SciPy."""
    generator = np.random.default_rng(0)
    reference, other = generator.normal(size=(90, 5)), generator.normal(0.3, 1.2, size=(70, 5))
    logits = generator.normal(size=(60, 4))
    probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)

    def score(splits, order):
        parts = np.array_split(probability[order], splits)
        return [math.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()) for p in parts]

    mixed = score(10, np.random.RandomState(2020).permutation(60))
    mean, covariance = reference.mean(0), np.cov(reference.T)
    fid = scipy_fid(other, mean, covariance)
    results = {
        "a": {"adagen": fid, "torch_fidelity": fid},
        "few": {"adagen": "nan", "torch_fidelity": fid},
        "isc": {
            "adagen": np.mean(mixed),
            "torch_fidelity_mean": np.mean(mixed),
            "torch_fidelity_std": np.std(mixed),
            "splits4_noshuffle": np.mean(score(4, np.arange(60))),
        },
    }
    io = {
        "ref_features": reference,
        "ref_mu": mean,
        "ref_sigma": covariance,
        "a_features": other,
        "few_features": other,
        "logits": logits,
    }
    folder = tmp_path / "vectors"
    folder.mkdir()
    write(folder / "fid", {"results": results}, io={name: torch.from_numpy(v) for name, v in io.items()})
    return folder


def test_right_vectors_pass(fid_vectors, capsys):
    assert parity.main([str(fid_vectors)]) == 0
    shown = lines(capsys)
    assert {line[0] for line in shown} == {"fid"}
    assert all(len(line) == 5 and line[-1] == "ok" for line in shown)
    assert "FID of few, adagen" not in {line[1] for line in shown}  # not a number there


def test_a_wrong_number_fails(fid_vectors, capsys):
    path = fid_vectors / "fid" / "config.json"
    config = json.loads(path.read_text())
    config["results"]["a"]["torch_fidelity"] *= 1 + 1e-6
    path.write_text(json.dumps(config))
    assert parity.main([str(fid_vectors)]) == 1
    failed = [line for line in lines(capsys) if line[-1] == "FAIL"]
    assert [line[1] for line in failed] == ["FID of a, torch-fidelity"]


def test_a_folder_that_is_not_known_fails(fid_vectors, capsys):
    (fid_vectors / "gan").mkdir()
    assert parity.main([str(fid_vectors)]) == 1
    assert ["gan", "unknown folder", "nan", "0", "FAIL"] in lines(capsys)


def test_a_folder_that_cannot_be_read_fails_and_the_others_are_still_checked(fid_vectors, capsys):
    shutil.copytree(fid_vectors / "fid", fid_vectors / "dit")
    assert parity.main([str(fid_vectors)]) == 1
    shown = lines(capsys)
    assert shown[0][0] == "dit"
    assert shown[0][1].startswith("FileNotFoundError")
    assert shown[0][-1] == "FAIL"
    assert [line[-1] for line in shown if line[0] == "fid"] == ["ok"] * (len(shown) - 1)


@pytest.mark.parametrize(("make", "message"), [(True, "holds no folders"), (False, "is not a folder")])
def test_no_vectors_at_all_is_a_mistake(tmp_path, capsys, make, message):
    if make:
        (tmp_path / "empty").mkdir()
    assert parity.main([str(tmp_path / "empty")]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def maskgit_vectors(tmp_path):
    """MaskGIT vectors whose decisions a plain Python loop takes."""
    networks = maskgit_networks(GRID, CODES, DIM)
    actions = {
        "manual_gen_ratios": torch.linspace(0.8, 0.1, STEPS)[:, None].expand(STEPS, BATCH),
        "manual_temp": torch.rand(STEPS, BATCH),
        "manual_samp_temp": 0.5 + torch.rand(STEPS, BATCH),
        "manual_cfg": torch.rand(STEPS, BATCH),
    }
    rollout = maskgit_rollout(networks, Given(actions))
    with torch.no_grad():
        logits, features = networks[0](rollout["masked_ids"][0], CONTEXTS)
    io = {"masked_ids": rollout["masked_ids"][0], "context": CONTEXTS[:, None], "logits": logits}
    folder = tmp_path / "vectors"
    folder.mkdir()
    write_maskgit(folder, networks, io=io | {"feat": features[:, ::2]}, rollout=rollout)
    return folder


def test_the_decisions_of_a_plain_loop_are_reproduced_by_the_sampler(maskgit_vectors):
    found = list(parity.results(maskgit_vectors / "maskgit"))
    assert len(found) == 4 + 2 * STEPS
    assert [result for result in found if not result.ok] == []


def test_one_wrong_token_fails(maskgit_vectors):
    path = maskgit_vectors / "maskgit" / "rollout.safetensors"
    rollout = dict(parity.Fixture(path.parent).tensors("rollout"))
    rollout["sampled_ids"][1, 0, 3] = (rollout["sampled_ids"][1, 0, 3] + 1) % CODES
    save_file(rollout, path)
    failed = [result for result in parity.results(path.parent) if not result.ok]
    assert [result.quantity for result in failed] == ["sampled tokens, decision 1"]


def failures(folder, **settings):
    """Returns what fails in a folder whose `config.json` is changed: {dotted path: value}."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for name, value in settings.items():
        *parents, last = name.split(".")
        inner = config
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[last] = value
    path.write_text(json.dumps(config))
    return [result.quantity for result in parity.results(folder) if not result.ok]


@pytest.mark.parametrize("path", ["colour", "constructor.patch_size", "generator.cfg_rescale", "x.y"])
def test_a_setting_that_is_not_known_fails(maskgit_vectors, path):
    found = failures(maskgit_vectors / "maskgit", **{path: 3})
    assert found == [f"setting {path.removesuffix('.y')} is not known"]


@pytest.mark.parametrize(
    ("path", "value", "usual"),
    [
        ("constructor.qkv_bias", True, False),
        ("generator.mask_ind", 3, CODES),
        ("generator.gen_steps", 16, STEPS),
    ],
)
def test_a_setting_that_genenv_has_otherwise_fails(maskgit_vectors, path, value, usual):
    found = failures(maskgit_vectors / "maskgit", **{path: value})
    assert found == [f"setting {path} is {value}, genenv has {usual}"]
    assert failures(maskgit_vectors / "maskgit", **{path: usual}) == []


@pytest.mark.parametrize("path", ["seed", "margins.gumbel_gap", "constructor.use_checkpoint"])
def test_a_setting_that_nothing_depends_on_may_have_any_value(maskgit_vectors, path):
    assert failures(maskgit_vectors / "maskgit", **{path: 3}) == []


def test_a_tensor_and_a_file_that_are_not_known_fail(maskgit_vectors):
    folder = maskgit_vectors / "maskgit"
    io = dict(parity.Fixture(folder).tensors("io"))
    save_file(io | {"attention": torch.ones(2)}, folder / "io.safetensors")
    save_file({"x": torch.ones(2)}, folder / "rollout_2.safetensors")
    assert failures(folder) == [
        "tensor attention of io.safetensors is not known",
        "file rollout_2.safetensors is not known",
    ]


def test_the_command_names_the_folder_and_the_setting(fid_vectors, capsys):
    failures(fid_vectors / "fid", temp_init=1.0)
    assert parity.main([str(fid_vectors)]) == 1
    assert ["fid", "setting temp_init is not known", "nan", "0", "FAIL"] in lines(capsys)


def test_a_record_tells_what_was_read():
    record = Record({"a": 1, "b": {"c": 2, "d": 3}, "e": {}, "f": [{"g": 4}, {"g": 5}], "h.x": 6, "h.y": 7})
    assert set(record.unread()) == {"a", "b", "f", "h.x", "h.y"}
    assert record["b"]["c"] == 2
    assert [inner["g"] for inner in record["f"][:1]] == [4]
    assert dict(record.under("h.")) == {"x": 6, "y": 7}
    assert "a" in record
    assert set(record.unread()) == {"a", "b.d", "f.1.g"}
    assert len(record) == 6


def test_weights_may_be_stored_as_two_whole_factors(tmp_path):
    left, right = torch.tensor([[1], [2]], dtype=torch.int8), torch.tensor([[3, 4]], dtype=torch.int8)
    weights = {"w.__lr_a": left, "w.__lr_b": right, "b": torch.ones(2)}
    write(tmp_path / "x", {"lowrank": {"w": {"scale": 0.5, "shape": [2, 1, 2]}}}, weights)
    state = parity.Fixture(tmp_path / "x").state_dict
    assert state["w"].tolist() == [[[1.5, 2.0]], [[3.0, 4.0]]]
    assert state.keys() == {"w", "b"}


@pytest.mark.parametrize(
    ("ours", "theirs", "ok"),
    [
        ([1.0, -math.inf], [1.0, -math.inf], True),
        ([1.0, math.inf], [1.0, -math.inf], False),
        ([100.001], [100.0], True),
        ([0.01], [0.0], False),
        ([math.nan], [0.0], False),
        ([1.0], [1.0, 2.0], False),
    ],
)
def test_floats_are_compared_by_absolute_and_relative_error(ours, theirs, ok):
    assert close("x", torch.tensor(ours), torch.tensor(theirs), 1e-3).ok is ok


def test_whole_numbers_must_be_equal():
    assert equal("x", torch.tensor([1, 2]), torch.tensor([1, 2])).ok
    assert not equal("x", torch.tensor([1, 2]), torch.tensor([1, 3])).ok
    assert not equal("x", torch.tensor([1, 2]), torch.tensor([1])).ok


def test_the_command_runs_as_a_module(fid_vectors):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "genenv.parity", str(fid_vectors)]
    done = subprocess.run(command, cwd=root, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].split("  ")[:2] == ["fid", "reference mean"]
