import json

import gymnasium as gym
import pytest
import torch
from safetensors.torch import load_file, save_file

import genenv
from genenv import policies
from genenv.checkpoints import CheckpointError
from genenv.models.policy import PolicyBackbone
from genenv.policies import load_policy, pretrained, save_policy
from genenv.rollout import run_episode

KWARGS = {"backbone": "digits", "num_steps": 3, "observe": ["features", "step", "context"], "smoothing": 0.25}


def network(seed=0, **changed):
    torch.manual_seed(seed)
    arguments = {
        "feature_dim": 96,
        "grid_size": 4,
        "num_outputs": 4,
        "hidden_dim": 16,
        "head_dims": (4, 8, 8),
    }
    made = PolicyBackbone(**arguments | {"num_classes": 10, "num_steps": 3} | changed)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.safetensors"
    save_policy(network(), "AdaGen/MaskGIT-v0", KWARGS | {"device": "cpu"}, path, "by hand")
    return path


def test_a_policy_acts_after_loading_as_before_saving(file):
    actor = genenv.load_policy(file)
    assert (actor.env_id, actor.env_kwargs) == ("AdaGen/MaskGIT-v0", KWARGS | {"device": "cpu"})
    env = gym.make_vec(actor.env_id, num_envs=5, reward="none", autoreset_mode="Disabled", **actor.env_kwargs)
    loaded, before = run_episode(env, actor, 7), run_episode(env, network(), 7)
    assert torch.equal(loaded.actions, before.actions)
    assert loaded.actions.abs().max() > 0.01
    assert torch.equal(loaded.images, before.images)


@pytest.mark.parametrize(
    "changed", [{"num_classes": 0}, {"num_steps": 0}, {"grid_size": 3}, {"head_dims": (2, 4, 6)}]
)
def test_every_shape_comes_back(tmp_path, changed):
    path = tmp_path / "p.safetensors"
    save_policy(network(**changed), "AdaGen/MaskGIT-v0", KWARGS, path)
    kept = load_policy(path)._act
    assert kept.arguments == network(**changed).arguments
    assert not any(parameter.requires_grad for parameter in kept.parameters())


def test_the_package_s_policies_are_found_by_their_ids(file, monkeypatch):
    folder = file.parent
    file.rename(folder / "AdaGen--MaskGIT-v0.safetensors")
    monkeypatch.setattr(policies, "FOLDER", folder)
    assert pretrained() == ["AdaGen/MaskGIT-v0"]
    assert genenv.load_policy("AdaGen/MaskGIT-v0").env_id == "AdaGen/MaskGIT-v0"
    with pytest.raises(ValueError, match=r"there is no policy 'AdaGen/VAR-v0': .* one of AdaGen/MaskGIT-v0"):
        genenv.load_policy("AdaGen/VAR-v0")


@pytest.mark.parametrize("name", ["sampler", "reward", "render_mode", "prompts"])
def test_a_file_holds_no_keyword_argument_that_may_name_a_module(tmp_path, file, name):
    with pytest.raises(ValueError, match=rf"a policy's file holds no '{name}'"):
        save_policy(network(), "AdaGen/MaskGIT-v0", KWARGS | {name: "os:system"}, tmp_path / "p.safetensors")
    assert not (tmp_path / "p.safetensors").exists()
    rewrite(file, lambda head: head["env_kwargs"].update({name: "os:system"}))
    with pytest.raises(ValueError, match=rf"a policy's file holds no '{name}'"):
        load_policy(file)


def rewrite(path, change, form=policies.FORMAT):
    with policies.safe_open(path, framework="pt") as opened:
        head = json.loads(opened.metadata()["policy"])
    change(head)
    save_file(load_file(path), path, metadata={"format": form, "policy": json.dumps(head)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.pop("network"), "does not describe a policy"),
        (lambda head: head["network"].pop("grid_size"), "does not describe a policy"),
        (lambda head: head["network"].update(hidden_dim="wide"), "does not describe a policy"),
        (lambda head: head["network"].update(hidden_dim=24), "does not fit PolicyBackbone"),
        (lambda head: head["network"].update(num_steps=0), "does not fit PolicyBackbone"),
    ],
)
def test_a_damaged_description_is_told_with_the_file(file, change, message):
    rewrite(file, change)
    with pytest.raises(CheckpointError, match=message) as told:
        load_policy(file)
    assert str(file) in str(told.value)


def test_what_is_no_policy_s_file_is_told(file, tmp_path):
    rewrite(file, lambda head: None, form="other")
    with pytest.raises(
        CheckpointError, match=r"must be a file of genenv.policies.save_policy, got .* 'other'"
    ):
        load_policy(file)
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="got one of format None"):
        load_policy(file)
    file.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="is not a readable safetensors file"):
        load_policy(file)
    with pytest.raises(ValueError, match="there is no policy"):
        load_policy(tmp_path / "absent.safetensors")


def test_a_number_that_is_not_finite_is_refused(file):
    broken = network()
    broken.table.data[0, 0] = torch.nan
    save_policy(broken, "AdaGen/MaskGIT-v0", KWARGS, file)
    with pytest.raises(CheckpointError, match="table"):
        load_policy(file)
