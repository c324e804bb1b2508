import dataclasses
import shutil
import sys

import numpy as np
import pytest
import torch
from torchvision.models import Inception_V3_Weights, inception_v3
from torchvision.transforms.functional import normalize, resize

from genenv.checkpoints import CheckpointError, sha256
from genenv.data import digits
from genenv.metrics.frechet import moments
from genenv.releases import DOWNLOADS
from genenv.rewards import features
from genenv.rewards.features import TorchvisionInception, real_moments, reward_features
from genenv.tiers import load_part

BACKBONE = "imagenet256-dit-xl-2"
PIXELS, REFERENCE = 256, DOWNLOADS["adm-imagenet-256"]
WEIGHTS = DOWNLOADS["inception-torchvision"]


@pytest.fixture(scope="module")
def network():
    """Untrained, but with weights that let the images through to the last layer."""
    torch.manual_seed(0)
    network = inception_v3(weights=None, init_weights=False, transform_input=True).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    return network.requires_grad_(False)


@pytest.fixture(scope="module")
def home(network, tmp_path_factory):
    """A folder of checkpoints with untrained weights in the file that torchvision would fetch."""
    folder = tmp_path_factory.mktemp("home")
    torch.save(network.state_dict(), folder / WEIGHTS.file)
    yield folder
    shutil.rmtree(folder)  # 109 MB


@pytest.fixture
def offline(home, monkeypatch, tmp_path):
    """A folder of checkpoints with the weights alone; nothing can be downloaded."""
    (tmp_path / WEIGHTS.file).symlink_to(home / WEIGHTS.file)
    monkeypatch.setenv("GENENV_HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    published = dataclasses.replace(WEIGHTS, sha256=sha256(home / WEIGHTS.file)[:8])
    monkeypatch.setitem(DOWNLOADS, features.WEIGHTS, published)
    return tmp_path


class Colours(TorchvisionInception):
    """Stands for the network where only files and chunks matter."""

    dim, sha256, device = 3, "abcdef0123", torch.device("cpu")

    def __init__(self):
        self.chunks = []

    def features(self, images):
        self.chunks.append(len(images))
        return images.mean((2, 3))


def write_reference(folder, **arrays):
    np.savez(folder / REFERENCE.file, **arrays)
    return sha256(folder / REFERENCE.file)[:8]


def bytes_of(n, side=8):
    return torch.randint(256, (n, side, side, 3), generator=torch.Generator().manual_seed(n)).byte()


def as_images(batch):
    return batch.permute(0, 3, 1, 2).float() / 255


def test_features_are_those_of_torchvision_for_the_input_it_prescribes(offline, network):
    inception = TorchvisionInception(PIXELS)
    assert inception.sha256 == sha256(offline / WEIGHTS.file)
    assert not any(p.requires_grad for p in inception.network.parameters())
    images = as_images(bytes_of(1, side=PIXELS)).requires_grad_()
    found = inception.features(images)
    assert found.dtype == torch.float32
    assert found.requires_grad

    last = []
    handle = network.fc.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    preset = Inception_V3_Weights.IMAGENET1K_V1.transforms()
    assert (preset.crop_size, preset.interpolation.value) == ([299], "bilinear")
    network(normalize(resize(images.detach(), [299, 299], antialias=True), preset.mean, preset.std))
    handle.remove()
    assert last[0].shape == (1, 2048)
    assert last[0].std() > 0
    torch.testing.assert_close(found.detach(), last[0], rtol=1e-5, atol=1e-5 * last[0].std().item())


def test_images_go_through_in_chunks_and_with_the_sharpness_of_the_real_ones(monkeypatch, offline):
    sizes = []
    network = torch.nn.Flatten()
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape)))
    monkeypatch.setattr(features, "_build", lambda path: network)
    inception = TorchvisionInception(8)
    images = as_images(bytes_of(65, side=12))
    found = inception.features(images)
    assert sizes == [(64, 3, 299, 299), (1, 3, 299, 299)]
    assert -1 <= found.min() < -0.5 < 0.5 < found.max() <= 1
    reduced = resize(images[:2], [8, 8], antialias=True)
    torch.testing.assert_close(inception.features(reduced), found[:2])
    with pytest.raises(ValueError, match=r"Inception takes images \(N, 3, H, W\), got \(1, 1, 8, 8\)"):
        inception.features(torch.zeros(1, 1, 8, 8))


def test_weights_are_refused_before_they_are_read_where_their_hash_is_wrong(offline, monkeypatch):
    monkeypatch.setitem(DOWNLOADS, features.WEIGHTS, WEIGHTS)
    monkeypatch.setattr(features, "read_state_dict", lambda path: pytest.fail("read"))
    with pytest.raises(
        CheckpointError, match=r"has sha256 [0-9a-f]{64}, but it must begin with 0cc3c7bd; down"
    ):
        TorchvisionInception(PIXELS)


def test_weights_are_found_where_torchvision_keeps_them(offline):
    hub = offline / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / WEIGHTS.file).write_bytes(b"another")
    with pytest.raises(CheckpointError, match=f"{hub / WEIGHTS.file} has sha256"):
        TorchvisionInception(PIXELS)


@pytest.mark.parametrize(
    ("missing", "page"), [(WEIGHTS.file, "download.pytorch.org"), (REFERENCE.file, "guided-diffusion")]
)
def test_a_missing_file_is_named_with_its_page_and_its_place(offline, monkeypatch, missing, page):
    monkeypatch.setattr(features, "_build", lambda path: torch.nn.Identity())
    (offline / missing).unlink(missing_ok=True)
    with pytest.raises(CheckpointError, match=f"{missing} is missing and .*{page}.* put it at {offline}"):
        reward_features(BACKBONE, "cpu")


def test_a_missing_torchvision_is_named_with_its_remedy(offline, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(ImportError, match=r"pip install 'genenv\[metrics\]'"):
        TorchvisionInception(PIXELS)


def test_a_reference_of_moments_alone_is_refused(offline):
    write_reference(offline, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(CheckpointError, match=r"holds moments but no images; download .*guided-diffusion"):
        real_moments(Colours(), REFERENCE)
    assert not list(offline.glob("*.safetensors"))
    assert not (offline / "recorded_sha256.json").exists()


def test_real_moments_are_computed_in_chunks_and_once_for_a_batch_and_weights(offline):
    real = bytes_of(70)
    start = write_reference(offline, arr_0=real.numpy())
    colours = Colours()
    first = real_moments(colours, REFERENCE)
    assert colours.chunks == [64, 6]
    torch.testing.assert_close(first, moments(Colours().features(as_images(real))), rtol=1e-6, atol=1e-12)
    assert [x.dtype for x in first] == [torch.float64, torch.float64]
    (kept,) = offline.glob("*.safetensors")
    assert start in kept.name
    assert "abcdef01" in kept.name

    again = real_moments(colours, REFERENCE)
    assert colours.chunks == [64, 6]
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    colours.sha256 = "123456789a"  # other weights
    real_moments(colours, REFERENCE)
    assert colours.chunks == [64, 6, 64, 6]


def test_real_moments_are_returned_where_they_cannot_be_kept(offline, monkeypatch):
    write_reference(offline, arr_0=bytes_of(3).numpy())
    monkeypatch.setattr(features.os, "access", lambda path, mode: False)
    found = real_moments(Colours(), REFERENCE)
    torch.testing.assert_close(
        found, moments(Colours().features(as_images(bytes_of(3)))), rtol=1e-6, atol=1e-12
    )
    assert not list(offline.glob("*.safetensors"))


def test_rewards_of_imagenet_see_real_images_as_generated_ones(offline, monkeypatch):
    write_reference(offline, arr_0=bytes_of(2).numpy())
    inception, mean, covariance = reward_features(BACKBONE, "cpu")
    expected = moments(inception.features(as_images(bytes_of(2))))
    torch.testing.assert_close((mean, covariance), expected, rtol=1e-4, atol=1e-9)
    assert covariance.trace() > 0
    monkeypatch.setattr(TorchvisionInception, "features", lambda *_: pytest.fail("computed twice"))
    _, *again = reward_features(f"random:{BACKBONE}", "cpu")
    assert torch.equal(again[0], mean)
    assert torch.equal(again[1], covariance)


def test_rewards_of_digits_see_a_classifier_that_is_not_the_judge():
    extractor, mean, covariance = reward_features("digits", "cpu")
    images = digits()[0]
    classifier, judge = (load_part(part, "digits") for part in ("reward_features", "judge"))
    found = extractor.features(images)
    assert torch.equal(found, classifier.features(images))
    assert not torch.allclose(found, judge.features(images))
    torch.testing.assert_close((mean, covariance), moments(found), rtol=0, atol=0)
