import dataclasses
import shutil

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch_fidelity import feature_extractor_inceptionv3 as library

from genenv.checkpoints import CheckpointError, sha256
from genenv.metrics import inception
from genenv.metrics.fid import read_adm_images
from genenv.metrics.inception import InceptionExtractor
from genenv.metrics.judge import Judge
from genenv.releases import BACKBONES, DOWNLOADS
from genenv.tiers import tier_of

BACKBONE = "imagenet256-dit-xl-2"
WEIGHTS, ADM = DOWNLOADS["inception-fid"], DOWNLOADS["adm-imagenet-256"]
REFERENCE = ADM.file


class Untrained(library.FeatureExtractorInceptionV3):
    def load_state_dict(self, state):
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of checkpoints with untrained weights in the file that torch-fidelity would fetch."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "load_state_dict_from_url", lambda url, progress: {})
        torch.manual_seed(0)
        state = Untrained("untrained", ["2048"]).state_dict()
    torch.save(state, folder / WEIGHTS.file)
    write_reference(folder / REFERENCE, arr_0=photos(2).mul(255).round().byte().permute(0, 2, 3, 1).numpy())
    yield folder
    shutil.rmtree(folder)  # 130 MB


@pytest.fixture
def offline(home, monkeypatch):
    monkeypatch.setenv("GENENV_HOME", str(home))
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    published = dataclasses.replace(WEIGHTS, sha256=sha256(home / WEIGHTS.file)[:8])
    monkeypatch.setitem(DOWNLOADS, inception.WEIGHTS, published)
    return home


def photos(n, pixels=256):
    """Smooth random images (n, 3, H, W) in [0, 1]."""
    coarse = torch.rand(n, 3, 9, 9, generator=torch.Generator().manual_seed(n))
    return F.interpolate(coarse, size=(pixels, pixels), mode="bilinear")


def write_reference(path, dim=2048, **arrays):
    arrays = {"mu": np.zeros(dim, np.float32), "sigma": np.eye(dim)} | arrays
    np.savez(path, **arrays)


def test_inception_sees_what_torch_fidelity_and_adagen_show_it(offline, monkeypatch):
    network = inception._build(offline / WEIGHTS.file)
    monkeypatch.setattr(inception, "_build", lambda path: network)
    fidelity, adagen = Judge(BACKBONE), Judge(BACKBONE, "adagen")
    assert (fidelity.extractor.protocol, adagen.extractor.protocol) == ("torch-fidelity", "adagen")
    assert fidelity.extractor.sha256 == sha256(offline / WEIGHTS.file)
    assert fidelity.extractor.reference.sha256 == sha256(offline / REFERENCE)
    assert fidelity.extractor.reference.mean.dtype == torch.float64

    images = (255 * photos(1)).round() / 255
    features, logits = fidelity.extractor(images)
    torch.testing.assert_close(
        (features, logits), network((255 * images).round().byte()), rtol=1e-5, atol=1e-5
    )
    state = torch.load(offline / WEIGHTS.file, mmap=True)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())

    nudged = images + 0.3 / 255  # lost in rounding
    assert torch.equal(fidelity.features(nudged), features)
    other = adagen.features(images)
    assert (other - features).abs().max() > 1e-3 * features.std()
    assert not torch.equal(adagen.features(nudged), other)
    resized = F.interpolate(images, size=(299, 299), mode="bilinear", align_corners=False)
    torch.testing.assert_close(other, adagen.extractor.body(2 * resized - 1).flatten(1))

    torch.testing.assert_close(fidelity.real, fidelity.features(photos(2)))  # from the reference's own images
    with pytest.raises(ValueError, match="more images than the 2048 feature dimensions, got 1"):
        fidelity.measure(images, torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"Inception takes images \(N, 3, H, W\), got \(1, 1, 8, 8\)"):
        fidelity.features(torch.zeros(1, 1, 8, 8))


def test_weights_are_refused_before_they_are_unpickled_where_their_hash_is_wrong(offline, monkeypatch):
    monkeypatch.setitem(DOWNLOADS, inception.WEIGHTS, WEIGHTS)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(CheckpointError, match=r"has sha256 [0-9a-f]{64}, but it must begin with 6726825d"):
        InceptionExtractor(256, ADM, "adagen")


def test_weights_are_found_where_torch_fidelity_keeps_them(offline, monkeypatch, tmp_path):
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (hub / WEIGHTS.file).write_bytes(b"another")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"{hub / WEIGHTS.file} has sha256"):
        InceptionExtractor(256, ADM, "adagen")


@pytest.mark.parametrize(("missing", "page"), [(WEIGHTS.file, "toshas"), (REFERENCE, "guided-diffusion")])
def test_a_missing_file_is_named_with_its_page_and_its_place(offline, monkeypatch, tmp_path, missing, page):
    if missing == REFERENCE:
        (tmp_path / WEIGHTS.file).symlink_to(offline / WEIGHTS.file)
    monkeypatch.setenv("GENENV_HOME", str(tmp_path))
    with pytest.raises(CheckpointError, match=f"{missing} is missing and .*{page}.* put it at {tmp_path}"):
        Judge(BACKBONE)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(3)}, r"must hold mu \(2048,\) and sigma \(2048, 2048\), got \(3,\)"),
        ({"mu": np.array([{}], dtype=object)}, "is not an .npz file with mu, sigma: ValueError"),
        (None, "is not an .npz file with mu, sigma"),
    ],
)
def test_a_file_that_is_no_reference_is_refused(offline, monkeypatch, tmp_path, arrays, message):
    (tmp_path / WEIGHTS.file).symlink_to(offline / WEIGHTS.file)
    monkeypatch.setenv("GENENV_HOME", str(tmp_path))
    if arrays is None:
        (tmp_path / REFERENCE).write_bytes(b"PK\x03\x04 not an archive")
    else:
        write_reference(tmp_path / REFERENCE, **arrays)
    with pytest.raises(CheckpointError, match=message):
        InceptionExtractor(256, ADM, "torch-fidelity")
    assert not (tmp_path / "recorded_sha256.json").exists()


def test_a_reference_of_moments_alone_has_no_images(offline, tmp_path):
    write_reference(tmp_path / "moments.npz")
    assert read_adm_images(tmp_path / "moments.npz", 5) is None
    assert read_adm_images(offline / REFERENCE, 2).shape == (2, 256, 256, 3)
    write_reference(tmp_path / "floats.npz", arr_0=np.zeros((2, 4, 4, 3)))
    with pytest.raises(CheckpointError, match=r"must hold images \(N, H, W, 3\) of uint8, got .* of float64"):
        read_adm_images(tmp_path / "floats.npz", 5)


def test_images_of_another_size_are_reduced_to_that_of_the_reference(offline, monkeypatch):
    monkeypatch.setattr(inception, "_build", lambda path: nn.Sequential(nn.MaxPool2d(13), nn.Linear(1587, 1)))
    extractor = Judge("imagenet384-llamagen-l", "adagen").extractor
    images = photos(1, pixels=384)
    smaller = F.interpolate(images, size=(256, 256), mode="bicubic")
    torch.testing.assert_close(extractor(images), extractor(smaller))


@pytest.mark.parametrize("backbone", [name for name in BACKBONES if name.startswith("imagenet")])
def test_every_released_class_conditional_generator_has_a_judge(backbone):
    assert list(tier_of(backbone).judges) == ["torch-fidelity", "adagen"]
