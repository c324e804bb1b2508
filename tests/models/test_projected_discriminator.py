"""The projected discriminator over a tiny vision transformer."""

import copy
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genenv.models.projected_discriminator import (
    ClassMapping,
    Head,
    LocalBatchNorm,
    ProjectedDiscriminator,
    SpectralConv1d,
    TextMapping,
    dino_vit_s_16,
    vision_transformer,
)

SIDE, DIM, CLASSES, TAPS = 8, 16, 5, (0, 2)


def tiny_vit():
    """A transformer of 3 blocks that sees 4 patches."""
    vit = vision_transformer(img_size=SIDE, patch_size=4, embed_dim=DIM, depth=3, num_heads=2)
    for parameter in vit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return vit


def make(seed=0, mapping=None, generator=None):
    pytest.importorskip("timm")
    torch.manual_seed(seed)
    mapping = mapping or ClassMapping(CLASSES, dim=12)
    return ProjectedDiscriminator(tiny_vit(), mapping, TAPS, embed_dim=6, generator=generator)


def batch(n=6, side=SIDE, channels=3):
    generator = torch.Generator().manual_seed(n)
    images = torch.rand(n, channels, side, side, generator=generator)
    return images, torch.randint(CLASSES, (n,), generator=generator)


def test_every_patch_of_every_tap_gives_a_logit():
    assert make()(*batch()).shape == (6, (len(TAPS) + 1) * 4)


@torch.no_grad()
def test_the_features_are_the_patches_with_the_class_token_added():
    model, (images, _) = make(), batch()
    vit = model.dino.model["model"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = vit.patch_embed((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
    x = torch.cat([vit.cls_token.expand(6, -1, -1), x], dim=1) + vit.pos_embed
    states = [x]
    for block in vit.blocks:
        states.append(block(states[-1]))
    expected = [states[tap + 1] for tap in TAPS] + [states[0]]
    for ours, theirs in zip(model.features(images), expected, strict=True):
        torch.testing.assert_close(ours, (theirs[:, 1:] + theirs[:, :1]).transpose(1, 2))


class OracleHead(nn.Module):
    """The head of torch's own layers, for one group of images."""

    def __init__(self, channels, condition_dim, embed_dim):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.utils.spectral_norm(
                nn.Conv1d(channels, out, k, padding=k // 2, padding_mode="circular"), eps=1e-12
            )
            for out, k in ((channels, 1), (channels, 9), (embed_dim, 1))
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(channels, track_running_stats=False, eps=1e-5) for _ in range(2)
        )
        self.project = nn.Linear(condition_dim, embed_dim)

    def forward(self, x, condition):
        x = F.leaky_relu(self.norms[0](self.convs[0](x)), 0.2)
        x = (F.leaky_relu(self.norms[1](self.convs[1](x)), 0.2) + x) / 2**0.5
        x = self.convs[2](x)
        weight = self.project.weight / condition.shape[1] ** 0.5
        return (
            torch.einsum("ncl,nc->nl", x, F.linear(condition, weight, self.project.bias)) / x.shape[1] ** 0.5
        )


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*:FutureWarning")
def test_a_head_is_that_of_torchs_own_layers_in_both_modes():
    torch.manual_seed(0)
    oracle = OracleHead(10, 7, 5)
    for norm in oracle.norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    names = {"convs.0": "main.0.0", "norms.0": "main.0.1", "convs.1": "main.1.fn.0", "norms.1": "main.1.fn.1"}
    names |= {"convs.2": "cls", "project": "cmapper"}
    head = Head(10, 7, 5)
    head.load_state_dict(
        {
            names[k.rpartition(".")[0]] + "." + k.rpartition(".")[2]: v.clone()
            for k, v in oracle.state_dict().items()
        }
    )
    x, condition = torch.randn(8, 10, 11), torch.randn(8, 7)
    for training in (False, True, True, False):
        ours, theirs = head.train(training)(x, condition), oracle.train(training)(x, condition)
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(head.main[1].fn[0].weight_v, oracle.convs[1].weight_v)
    (ours,) = torch.autograd.grad(ours.square().sum(), head.main[1].fn[0].weight_orig)
    (theirs,) = torch.autograd.grad(theirs.square().sum(), oracle.convs[1].weight_orig)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_new_convolution_has_about_the_spectral_norm_1():
    torch.manual_seed(0)
    conv = SpectralConv1d(12, 10, 1).eval()
    response = conv(torch.eye(12)[:, :, None])[:, :, 0] - conv.bias
    assert torch.linalg.matrix_norm(response, 2).item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("n", "sizes"),
    [(1, [1]), (5, [5]), (8, [8]), (12, [6, 6]), (9, [5, 4]), (23, [8, 8, 7]), (32, [8] * 4)],
)
def test_images_are_normalised_in_groups_of_at_most_eight(n, sizes):
    torch.manual_seed(0)
    norm, x = LocalBatchNorm(3), torch.randn(n, 3, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    groups = [F.batch_norm(g, None, None, norm.weight, norm.bias, training=True) for g in x.split(sizes)]
    torch.testing.assert_close(norm(x), torch.cat(groups))
    assert torch.equal(norm.eval()(x), norm.train()(x))


def test_a_class_is_mapped_as_in_stylegan2():
    torch.manual_seed(0)
    mapping = ClassMapping(CLASSES, dim=12, num_layers=3)
    for name, parameter in mapping.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    x = mapping.embed.weight.T[[3, 0]] / math.sqrt(CLASSES) + mapping.embed.bias
    x = x / (x.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for layer in (mapping.fc0, mapping.fc1, mapping.fc2):
        x = x @ layer.weight.T * 0.01 / math.sqrt(12) + 0.01 * layer.bias
        x = F.leaky_relu(x, 0.2) * math.sqrt(2)
    torch.testing.assert_close(mapping(torch.tensor([3, 0])), x)


def test_the_label_matters():
    model, (images, labels) = make().eval(), batch()
    assert not torch.allclose(model(images, labels), model(images, (labels + 1) % CLASSES))


def test_a_text_counts_by_the_direction_of_its_embedding():
    model, (images, _) = make(mapping=TextMapping(20)).eval(), batch()
    embeddings = torch.randn(6, 20)
    logits = model(images, embeddings)
    torch.testing.assert_close(model(images, 7 * embeddings), logits)
    assert not torch.allclose(model(images, -embeddings), logits)


def test_grey_images_are_judged_as_coloured_ones():
    model, (images, labels) = make().eval(), batch(channels=1)
    assert torch.equal(model(images, labels), model(images.expand(-1, 3, -1, -1), labels))


def test_images_with_another_number_of_channels_are_refused():
    with pytest.raises(ValueError, match=r"images must have 1 or 3 channels, got shape \(6, 2, 8, 8\)"):
        make()(*batch(channels=2))


def seen(model, images):
    """Returns which view the features show: "resized", or the (top, left) of the crop."""
    height, width = images.shape[-2:]
    views = {"resized": F.interpolate(images, (SIDE, SIDE), mode="area")}
    for top in range(height - SIDE + 1):
        for left in range(width - SIDE + 1):
            views[top, left] = images[..., top : top + SIDE, left : left + SIDE]
    features = model.features(images)
    (found,) = (
        name
        for name, view in views.items()
        if all(torch.equal(a, b) for a, b in zip(features, model.dino(view), strict=True))
    )
    return found


def test_half_of_the_training_calls_see_a_random_crop():
    model = make(generator=torch.Generator().manual_seed(0))
    images = torch.rand(2, 3, SIDE + 1, SIDE + 2)
    found = [seen(model, images) for _ in range(80)]
    assert 25 <= found.count("resized") <= 55
    assert len(set(found)) == 1 + 2 * 3


@pytest.mark.parametrize("side", [SIDE - 3, SIDE, SIDE + 2])
def test_no_image_is_cropped_for_judgement(side):
    model, images = make().eval(), torch.rand(2, 3, side, side)
    views = [model.features(images) for _ in range(8)]
    expected = model.dino(F.interpolate(images, (SIDE, SIDE), mode="area"))
    assert all(torch.equal(a, b) for view in views for a, b in zip(view, expected, strict=True))


@pytest.mark.parametrize("size", [(SIDE, SIDE), (SIDE, SIDE + 4)])
def test_an_image_that_is_not_larger_is_never_cropped(size):
    model, images = make(generator=torch.Generator().manual_seed(0)), torch.rand(2, 3, *size)
    expected = model.dino(F.interpolate(images, (SIDE, SIDE), mode="area"))
    for _ in range(8):
        assert torch.equal(model.features(images)[0], expected[0])


def test_the_transformer_stays_frozen_in_training():
    model, (images, labels) = make().train(), batch()
    assert model.training
    assert model.heads.training
    assert not any(module.training for module in model.dino.modules())
    model(images.requires_grad_(), labels).sum().backward()
    assert all(parameter.grad is None for parameter in model.dino.parameters())
    assert all(p.grad is not None and p.grad.any() for p in model.heads.parameters() if p.ndim > 1)
    assert images.grad is not None
    assert images.grad.abs().sum() > 0


def test_a_restored_discriminator_goes_on_in_training_as_the_saved_one():
    generator = torch.Generator().manual_seed(0)
    model, other = make(0, generator=generator), make(1)
    images, labels = batch(side=SIDE + 3)
    model(images, labels)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    other.generator = torch.Generator()
    other.generator.set_state(generator.get_state())
    for _ in range(6):
        assert torch.equal(other(images, labels), model(images, labels))


def test_the_default_transformer_fits_what_timm_calls_dino():
    timm = pytest.importorskip("timm")
    with torch.device("meta"):
        released = timm.create_model("vit_small_patch16_224.dino", num_classes=0).state_dict()
        vit = dino_vit_s_16()
        model = ProjectedDiscriminator(vit, ClassMapping(1000))
    vit.load_state_dict(released, assign=True)
    assert sum(value.numel() for value in released.values()) == 21_665_664
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    prefix = "dino.model.model."
    assert {n.removeprefix(prefix) for n in own if n.startswith(prefix)} == released.keys()
    assert {name.split(".")[0] for name in own} == {"dino", "mapping", "heads"}
    assert own["heads.4.main.1.fn.0.weight_orig"] == (384, 384, 9)
    assert own["heads.0.cls.weight_orig"] == (64, 384, 1)
    assert own["heads.0.cmapper.weight"] == (64, 512)
    assert own["mapping.embed.weight"] == (512, 1000)
    assert own["mapping.fc7.weight"] == (512, 512)


def test_without_timm_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models.vision_transformer", None)
    with pytest.raises(ImportError, match=r"needs timm: pip install 'genenv\[scorers\]'"):
        dino_vit_s_16()
