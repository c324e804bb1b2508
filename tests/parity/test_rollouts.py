"""Whole folders of reference vectors with other settings, sizes and seeds, whose decisions plain Python takes."""

import pytest
import torch
from references import (
    CLASSES,
    CONTEXTS,
    Given,
    Policy,
    maskgit_networks,
    maskgit_rollout,
    var_networks,
    var_rollout,
    write_maskgit,
    write_var,
)

from genenv.parity import __main__ as parity


def failures(folder):
    found = list(parity.results(folder))
    assert len(found) > 8
    return [result.quantity for result in found if not result.ok]


@pytest.mark.parametrize(
    ("codes", "steps", "seed", "changes"),
    [
        (6, 1, 0, {"temp_init": 0.3}),
        (11, 3, 1, {"temp_init": 4.5, "manual_samp_temp_init": 0.7, "action_smooth": 0.4}),
        (8, 7, 2, {"manual_samp_temp_init": 2, "cfg_init": 3.0, "action_smooth": 0.95}),
        (9, 4, 3, {"temp_init": 4.5, "cfg_init": 0.2, "action_smooth": 0.0}),
    ],
)
def test_a_policy_of_maskgit_plays_under_any_settings(tmp_path, codes, steps, seed, changes):
    networks = maskgit_networks(16, codes, dim=8, seed=seed)
    settings = {"model_family": "maskgit", "gen_steps": steps, "cfg_init": 1.0, "action_smooth": 0.8}
    settings |= {"temp_init": 1.0, "manual_samp_temp_init": 1.0} | changes
    settings["action_keys"] = ["manual_gen_ratios", "manual_temp", "manual_samp_temp", "manual_cfg"]
    policy = Policy(settings, feature_dim=8)
    write_maskgit(tmp_path, networks)
    policy.write(tmp_path / "policy_maskgit", "../maskgit", maskgit_rollout(networks, policy))
    assert failures(tmp_path / "policy_maskgit") == []


@pytest.mark.parametrize(
    ("sides", "codes", "seed", "changes"),
    [
        ((1, 2, 3), 10, 0, {"topk": 0.4}),
        ((1, 3, 4), 17, 1, {"topk": 0.2, "topp": 1.0, "manual_samp_temp_init": 0.7}),
        ((1, 2), 12, 2, {"topk": 4, "topp": 0, "cfg_init": 0.3, "action_smooth": 0.8}),
        ((2, 4, 5, 6), 9, 3, {"topk": 2, "topp": 0.5, "manual_samp_temp_init": 2, "action_smooth": 0.4}),
    ],
)
def test_a_policy_of_var_plays_under_any_settings(tmp_path, sides, codes, seed, changes):
    networks = var_networks(sides, codes, dim=16, seed=seed)
    settings = {"model_family": "var", "gen_steps": len(sides), "cfg_init": 1.5, "action_smooth": 0.0}
    settings |= {"topp": 0.96, "manual_samp_temp_init": 1.0} | changes
    settings["action_keys"] = ["cfg", "top_k", "top_p", "manual_samp_temp"]
    policy = Policy(settings, feature_dim=16)
    rollout, _ = var_rollout(networks, policy)
    if settings["topk"] < 1:
        assert (rollout["action.top_k"] < 1).any()  # the case is there
    write_var(tmp_path, networks)
    kept = {
        name: value
        for name, value in rollout.items()
        if name.partition("_")[0] not in ("feat", "guided", "f")
    }
    policy.write(tmp_path / "policy_var", "../var", kept)
    assert failures(tmp_path / "policy_var") == []


@pytest.mark.parametrize(
    ("top_k", "top_p"),
    [
        ([[0.4, 0.9], [0.99, 3.7], [0.0, 0.2]], [[1.0, 0.3], [1.0, 0.9], [0.8, 1.0]]),
        ([[1.0, 7.9], [7.0, 2.2], [1.9, 5.0]], [[0.0, 1.0], [0.0, 0.0], [1.0, 0.6]]),
    ],
)
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_a_rollout_of_var_takes_any_filters(tmp_path, top_k, top_p, temperature):
    networks = var_networks((1, 2, 4), 7, dim=16, seed=5)
    actions = {"top_k": torch.tensor(top_k), "top_p": torch.tensor(top_p)}
    actions |= {"cfg": torch.rand(3, 2), "manual_samp_temp": torch.full((3, 2), temperature)}
    rollout, maps = var_rollout(networks, Given(actions))
    labels = torch.tensor([CLASSES, 0])
    with torch.no_grad():
        logits, _ = networks[0](maps, labels)
    io = {"x_BLCv_wo_first_l": maps, "label": labels, "logits": logits}
    write_var(tmp_path, networks, io=io, rollout=rollout, rollout_official={})
    assert failures(tmp_path / "var") == []


@pytest.mark.parametrize("temperature", [0.3, 4.5])
def test_a_rollout_of_maskgit_takes_any_temperatures(tmp_path, temperature):
    networks = maskgit_networks(3, 13, dim=8, seed=4)
    actions = {
        "manual_gen_ratios": torch.tensor([[0.9, 0.99], [0.5, 0.3], [0.2, 0.001]]),
        "manual_temp": temperature * torch.rand(3, 2),
        "manual_samp_temp": torch.full((3, 2), temperature),
        "manual_cfg": 5 * torch.rand(3, 2),
    }
    rollout = maskgit_rollout(networks, Given(actions))
    with torch.no_grad():
        logits, features = networks[0](rollout["masked_ids"][0], CONTEXTS)
    io = {"masked_ids": rollout["masked_ids"][0], "context": CONTEXTS[:, None], "logits": logits}
    write_maskgit(tmp_path, networks, io=io | {"feat": features}, rollout=rollout)
    assert failures(tmp_path / "maskgit") == []
