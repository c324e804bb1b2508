import argparse
import dataclasses
import functools
import http.server
import re
import sys
import threading
import types
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from safetensors.torch import save_file

from agents.released import RELEASED_POLICIES, load_official_policy
from genenv.checkpoints import CheckpointError, load_release, read_state_dict
from genenv.models.maskgit import MaskGITTransformer
from genenv.models.maskgit_vqgan import MaskGITVQGAN
from genenv.models.policy import PolicyBackbone
from genenv.models.vqgan import VQGAN
from genenv.models.vqgan_transformer import VQGANTransformer
from genenv.releases import BACKBONES, DOWNLOADS, RELEASES
from genenv.rollout import run_episode
from genenv.tiers import backbones_with, load_part

GRID, CODES, DIM = 16, 32, 16


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The folder of the released checkpoints, with the networks at a small size."""
    monkeypatch.setenv("GENENV_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    small = {
        "MaskGIT-L": lambda: MaskGITTransformer(
            GRID, CODES, DIM, depth=2, num_heads=2, mlp_ratio=1.0, num_classes=1000
        ),
        "vqgan_jax_strongaug": lambda: MaskGITVQGAN(32, (1, 1), 1, 8, CODES),
        "maskgit_policy": lambda: PolicyBackbone(DIM, GRID, 4, hidden_dim=8, head_dims=(4, 8, 8)),
    }
    for name, build in small.items():
        monkeypatch.setitem(RELEASES, name, dataclasses.replace(RELEASES[name], build=build))
    return tmp_path


def network(name="MaskGIT-L", seed=0):
    torch.manual_seed(seed)
    return RELEASES[name].build()


def forbid(monkeypatch):
    """Makes every download a failure of the test."""

    def fetch(*what, **_):
        raise AssertionError(f"{what} must not be fetched")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fetch)


def test_every_part_of_a_backbone_is_a_release():
    assert {name for parts in BACKBONES.values() for name in parts.values()} <= RELEASES.keys()
    assert {policy.env_kwargs["backbone"] for policy in RELEASED_POLICIES.values()} <= BACKBONES.keys()


def test_a_revision_is_the_newest_or_a_whole_commit():  # the hub resolves no shortened one
    found = {each.revision for each in DOWNLOADS.values()}
    assert all(re.fullmatch("main|[0-9a-f]{40}", revision) for revision in found)
    assert RELEASES["var_d16"].revision == RELEASES["vae_ch160v4096z32"].revision != "main"


def test_released_policies_of_var_play_with_the_released_top_k_rule():
    rules = {name: policy.env_kwargs.get("top_k_rule") for name, policy in RELEASED_POLICIES.items()}
    assert {name for name, rule in rules.items() if rule == "released"} == {
        "var_d16_policy",
        "var_d30_policy",
    }


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt", ".safetensors"])
def test_every_file_format_is_read(tmp_path, suffix):
    state = {"a": torch.arange(3), "b": torch.rand(2, 2)}
    path = tmp_path / f"x{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(state, path)
    found = read_state_dict(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state},
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"ema": state, "model": {"x": torch.zeros(1)}, "args": argparse.Namespace(lr=1e-4)},
        lambda state: {"model": {"module": state}, "opt": {"state": {}}},
    ],
    ids=["model", "state_dict", "ema and args", "two levels"],
)
def test_weights_are_found_where_training_scripts_nest_them(tmp_path, wrap):
    torch.save(wrap({"a": torch.arange(3)}), tmp_path / "x.pt")
    assert read_state_dict(tmp_path / "x.pt")["a"].tolist() == [0, 1, 2]


class Harmful:
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no checkpoint", "is not a readable checkpoint"),
        (b"", "is not a readable checkpoint"),
        (b"truncated", "is not a readable checkpoint"),
        ({"model": Harmful()}, "is not a readable checkpoint"),
        ({"epoch": 3}, "holds no state dict, at the top or under ema, model, module, state_dict"),
        ({}, "holds no state dict"),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "x.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_state_dict(path)


def test_a_truncated_checkpoint_is_refused(home):
    path = home / RELEASES["MaskGIT-L"].file
    torch.save(network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match=r"MaskGIT-L\.pth is not a readable checkpoint"):
        load_release("MaskGIT-L")


def test_a_file_of_another_network_is_refused(home):
    torch.save({"x": torch.zeros(1)}, home / RELEASES["MaskGIT-L"].file)
    with pytest.raises(CheckpointError, match=r"(?s)MaskGIT-L.pth does not fit MaskGITTransformer: .*x"):
        load_release("MaskGIT-L")


def test_a_file_that_changes_after_its_first_use_is_refused(home, monkeypatch):
    forbid(monkeypatch)
    path = home / RELEASES["MaskGIT-L"].file
    torch.save(network().state_dict(), path)
    load_release("MaskGIT-L")
    load_release("MaskGIT-L")
    torch.save(network(seed=1).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"has sha256 \w{64}, but \w{64} when it was first used"):
        load_release("MaskGIT-L")


def test_a_bad_file_can_be_replaced(home):
    path = home / RELEASES["MaskGIT-L"].file
    path.write_bytes(b"half a download")
    with pytest.raises(CheckpointError):
        load_release("MaskGIT-L")
    torch.save(network().state_dict(), path)
    load_release("MaskGIT-L")


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers as Hugging Face does, with one file, and remembers what it was asked for.

    Where `cut` is set, the connection breaks after so many bytes of the first answer.
    """

    content, gated, asked, cut = b"", False, [], None

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if not self.path.startswith("/api/"):
            self.asked.append((self.command, self.path, start))
        if self.gated:
            self.send_response(403)
            self.send_header("X-Error-Code", "GatedRepo")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        data = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"abc"')
        self.send_header("X-Repo-Commit", 40 * "0")
        self.send_header("Content-Length", str(len(data)))
        if start:
            whole = len(self.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.end_headers()
        if body:
            self.wfile.write(data[: None if start else self.cut])
            self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(home, monkeypatch):
    """A local hub with the weights of MaskGIT-L."""
    constants = pytest.importorskip("huggingface_hub").constants
    torch.save(network().state_dict(), home / "source")
    content = (home / "source").read_bytes()
    (home / "source").unlink()
    kind = type("LocalHub", (Hub,), {"content": content, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + template)
    yield kind
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("revision", ["main", "v1"])
def test_a_missing_file_is_downloaded_once_at_its_revision(hub, monkeypatch, revision):
    monkeypatch.setitem(RELEASES, "MaskGIT-L", dataclasses.replace(RELEASES["MaskGIT-L"], revision=revision))
    first, second = load_release("MaskGIT-L"), load_release("MaskGIT-L")
    path = f"/nzl-thu/MaskGIT-L/resolve/{revision}/MaskGIT-L.pth"
    assert [asked for asked in hub.asked if asked[0] == "GET"] == [("GET", path, 0)]
    assert torch.equal(first.mlm_layer.bias, second.mlm_layer.bias)


def test_a_broken_connection_goes_on_where_it_was(hub, home, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 500)
    hub.cut = 1000
    load_release("MaskGIT-L")
    assert [start for command, _, start in hub.asked if command == "GET"] == [0, 1000]
    assert (home / "MaskGIT-L.pth").read_bytes() == hub.content


def test_a_gated_repository_says_how_to_get_in(hub, home):
    hub.gated = True
    with pytest.raises(
        CheckpointError, match=r"in a gated repository: accept its terms on https://huggingface.co/nzl-thu"
    ):
        load_release("MaskGIT-L")
    assert not (home / "MaskGIT-L.pth").exists()


def test_a_failed_download_leaves_nothing_and_says_what_to_put_where(home, monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    where = home / "MaskGIT-L.pth"
    with pytest.raises(
        CheckpointError, match=r"could not be downloaded \(ConnectionError no route\): download it from"
    ) as error:
        load_release("MaskGIT-L")
    assert f"https://huggingface.co/nzl-thu/MaskGIT-L and put it at {where}" in str(error.value)
    assert list(home.iterdir()) == []


def test_a_failed_download_from_elsewhere_leaves_nothing_either(home, monkeypatch):
    def fail(url, path):
        Path(path).write_bytes(b"half")
        raise OSError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(CheckpointError, match=r"could not be downloaded .*no route.*: download it from"):
        load_release("DiT-XL-2-256x256")
    assert list(home.iterdir()) == []


def test_without_the_hub_s_library_the_remedy_is_named(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'genenv\[hub\]'.*put it at .*MaskGIT-L\.pth"):
        load_release("MaskGIT-L")


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_nothing_is_downloaded_offline(home, monkeypatch, how):
    forbid(monkeypatch)
    if how == "environment":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="is missing and downloads are switched off: download it from"):
        load_release("MaskGIT-L", local_files_only=how == "argument")


def test_a_file_that_a_browser_must_fetch_is_named(home, monkeypatch):
    forbid(monkeypatch)
    with pytest.raises(
        CheckpointError, match="cannot be fetched automatically: download it from https://drive"
    ):
        load_release("vqgan_jax_strongaug")


def test_a_released_backbone_makes_an_environment(home):
    for name in ("MaskGIT-L", "vqgan_jax_strongaug"):
        torch.save(network(name).state_dict(), home / RELEASES[name].file)
    env = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=2, backbone="imagenet256-maskgit-l", num_steps=2)
    episode = run_episode(env, lambda _: torch.zeros(2, 4), seed=0)
    assert episode.images.shape == (2, 3, 2 * GRID, 2 * GRID)
    assert episode.returns.tolist() == [0, 0]  # the released tiers ship no judge


def save_lightning(tensors, path, monkeypatch, callback="ModelCheckpoint"):
    """Writes a checkpoint as Lightning 1.0 did, its callbacks' memories under their classes."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    kept = type(callback, (), {"__module__": name})
    content = {
        "epoch": 3,
        "global_step": 7,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {kept: {"monitor": "val/loss", "best_model_score": torch.tensor(1.0)}},
        "optimizer_states": [{"state": {0: {"step": 7}}, "param_groups": [{"lr": 1e-4}]}],
        "lr_schedulers": [],
        "state_dict": tensors,
    }
    with monkeypatch.context() as patch:  # the library is there when it is written, and gone when it is read
        for module in ("pytorch_lightning", "pytorch_lightning.callbacks", name):
            patch.setitem(sys.modules, module, types.ModuleType(module))
        setattr(sys.modules[name], callback, kept)
        torch.save(content, path)


@pytest.fixture
def taming(home, monkeypatch):
    """The networks of taming's class-conditional ImageNet model at a small size, in a file of the official layout."""
    small = {
        "cin_transformer": lambda: VQGANTransformer(4, CODES, 8, 2, 2, num_classes=30, null_class=False),
        "cin_transformer's tokenizer": lambda: VQGAN(32, (1, 1), 1, 8, CODES, 8),
    }
    tensors = {"first_stage_model.loss.discriminator.main.0.weight": torch.zeros(2)}
    tensors |= {f"transformer.blocks.{i}.attn.mask": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    for name, build in small.items():
        monkeypatch.setitem(RELEASES, name, dataclasses.replace(RELEASES[name], build=build))
        tensors |= {RELEASES[name].prefix + key: value for key, value in network(name).state_dict().items()}
    path = home / RELEASES["cin_transformer"].file
    path.parent.mkdir(parents=True)
    save_lightning(tensors, path, monkeypatch)
    return path


def test_two_networks_are_found_in_one_file_by_their_prefixes(taming):
    for name in ("cin_transformer", "cin_transformer's tokenizer"):
        found, expected = load_release(name).state_dict(), network(name).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_the_released_vqgan_plays_without_guidance(taming):
    make = functools.partial(gym.make_vec, "AdaGen/VQGAN-v0", num_envs=2, backbone="imagenet256-vqgan")
    env = make()
    names = [param.name for param in env.unwrapped.sampler.params]
    assert names == ["token_temperature", "top_k", "top_p"]
    episode = run_episode(env, lambda _: torch.zeros(2, 3), seed=0)
    assert episode.images.shape == (2, 3, 8, 8)
    assert episode.diagnostics["nfe"][-1].tolist() == [16, 16]
    with pytest.raises(ValueError, match=r"guidance_weight must be 0 or None .* null class, got 0\.5"):
        make(guidance_weight=0.5)


def test_a_prefix_that_no_tensor_has_is_told(taming, monkeypatch):
    other = dataclasses.replace(RELEASES["cin_transformer"], prefix="gpt.")
    monkeypatch.setitem(RELEASES, "cin_transformer", other)
    with pytest.raises(CheckpointError, match=r"(?s)last.ckpt does not fit VQGANTransformer: .*tok_emb"):
        load_release("cin_transformer")


def test_other_classes_of_lightning_are_refused(tmp_path, monkeypatch):
    save_lightning({"a": torch.arange(2)}, tmp_path / "x.ckpt", monkeypatch)
    assert read_state_dict(tmp_path / "x.ckpt")["a"].tolist() == [0, 1]
    save_lightning({"a": torch.arange(2)}, tmp_path / "x.ckpt", monkeypatch, callback="Harmful")
    with pytest.raises(CheckpointError, match=r"x\.ckpt is not a readable checkpoint"):
        read_state_dict(tmp_path / "x.ckpt")


def test_random_weights_need_no_file_and_are_always_the_same(home, monkeypatch):
    forbid(monkeypatch)
    first, second = (load_part("maskgit", "random:imagenet256-maskgit-l") for _ in range(2))
    assert torch.equal(first.mid_block.mlp.fc1.weight, second.mid_block.mlp.fc1.weight)
    env = gym.make("AdaGen/MaskGIT-v0", backbone="random:imagenet256-maskgit-l", num_steps=1)
    env.reset(seed=0)
    assert env.step(env.action_space.sample())[-1]["image"].shape == (3, 2 * GRID, 2 * GRID)


@pytest.mark.parametrize("prefix", ["", "policy_old.actor."])
def test_a_released_policy_plays_in_its_environment(home, prefix):
    for name in ("MaskGIT-L", "vqgan_jax_strongaug"):
        torch.save(network(name).state_dict(), home / RELEASES[name].file)
    policy = network("maskgit_policy")
    torch.nn.init.normal_(policy.linear3.weight, std=3)
    state = {prefix + name: value for name, value in policy.state_dict().items()}
    torch.save({"model": state} if prefix else state, home / "maskgit_policy.pth")
    actor = load_official_policy(home / "maskgit_policy.pth")
    env = gym.make_vec(actor.env_id, num_envs=2, **actor.env_kwargs)
    observation, _ = env.reset(seed=0)
    spans = torch.tensor([param.span for param in env.unwrapped.actions.params])
    torch.testing.assert_close(actor(observation), policy(observation) / spans)
    assert actor(observation).abs().max() > 1  # raw outputs may leave the box
    assert run_episode(env, actor, seed=0).images.isfinite().all()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("unknown.pth", {}, "name must be one of maskgit_policy, .*, got 'unknown'"),
        ("dit_policy.pth", None, r"dit_policy\.pth is missing; download it from https://huggingface"),
        ("dit_policy.pth", {"x": torch.zeros(1)}, "the tensors are not those of a released AdaGen policy"),
    ],
)
def test_what_is_no_released_policy_is_refused(tmp_path, file, content, message):
    if content is not None:
        torch.save(content, tmp_path / file)
    with pytest.raises(ValueError, match=message):
        load_official_policy(tmp_path / file)


def test_a_release_is_frozen(home):
    torch.save(network().state_dict(), home / RELEASES["MaskGIT-L"].file)
    model = load_release("MaskGIT-L")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_no_shipped_name_is_a_released_one():
    assert backbones_with(["maskgit", "vq"]) == ["digits", "imagenet256-maskgit-l"]
