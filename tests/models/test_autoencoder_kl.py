import json
import sys
from pathlib import Path

import pytest
import torch

from genenv.models.autoencoder_kl import LATENT_SCALE, AutoencoderKL
from genenv.parity.fixture import Fixture
from genenv.parity.ode import check_autoencoder_kl

SHARED = Path(__file__).parents[3] / "shared" / "parity"
needs_parity = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the reference vectors are not beside this checkout"
)


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("diffusers")
    torch.manual_seed(0)
    return AutoencoderKL(ch=32, ch_mult=(1, 2), num_res_blocks=1).eval().requires_grad_(False)


def test_latents_become_images_between_0_and_1(model):
    latents = 5 * torch.randn(2, 4, 4, 6)
    images = model.decode(latents)
    assert images.shape == (2, 3, 8, 12)
    assert images.min() >= 0
    assert images.max() <= 1
    assert model.downsampling == 2
    torch.testing.assert_close(images, ((model.decode_unclamped(latents) + 1) / 2).clamp(0, 1))


def test_the_latents_are_scaled_back(model):
    latents = torch.randn(2, 4, 4, 4)
    torch.testing.assert_close(
        model.decode_unclamped(latents * LATENT_SCALE), model.network.decode(latents).sample
    )


def test_the_moments_are_those_of_the_latents(model):
    assert model.moments(torch.rand(2, 3, 8, 12)).shape == (2, 8, 4, 6)


def test_a_network_loads_what_it_saved(model):
    other = AutoencoderKL(ch=32, ch_mult=(1, 2), num_res_blocks=1)
    other.load_state_dict(model.state_dict())
    latents = torch.randn(1, 4, 4, 4)
    assert torch.equal(other.eval().decode(latents), model.decode(latents))


def test_a_missing_diffusers_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models.autoencoders.autoencoder_kl", None)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'genenv\[diffusers\]'"):
        AutoencoderKL()


@needs_parity
def test_the_released_checkpoint_fits():
    pytest.importorskip("diffusers")
    listing = json.loads((SHARED / "real_state_dict_shapes" / "autoencoder_kl_ema.json").read_text())
    with torch.device("meta"):
        model = AutoencoderKL()
        state = {key: torch.empty(shape) for key, (shape, _) in listing["state_dict"].items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == listing["parameters"]
    assert model.downsampling == 8


@needs_parity
def test_a_released_name_that_is_missing_or_too_many_is_refused():
    pytest.importorskip("diffusers")
    listing = json.loads((SHARED / "real_state_dict_shapes" / "autoencoder_kl_ema.json").read_text())
    with torch.device("meta"):
        model = AutoencoderKL()
        state = {key: torch.empty(shape) for key, (shape, _) in listing["state_dict"].items()}
    value = state.pop("decoder.mid.attn_1.q.weight")
    with pytest.raises(RuntimeError, match="Missing key"):
        model.load_state_dict(state, assign=True)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        model.load_state_dict(
            {**state, "decoder.mid.attn_1.q.weight": value, "decoder.mid.attn_9.q.weight": value}, assign=True
        )


@needs_parity
def test_the_reference_is_reproduced():
    pytest.importorskip("diffusers")
    fixture = Fixture(SHARED / "autoencoder_kl")
    assert [result for result in check_autoencoder_kl(fixture) if not result.ok] == []
