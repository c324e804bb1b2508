import json
from pathlib import Path

import pytest
import torch

from genenv.models.llamagen import (
    RELEASED,
    LlamaGenTransformer,
    llamagen_imagenet,
    rotary_table,
)
from genenv.models.llamagen_vq import LlamaGenVQ
from genenv.parity.fixture import Fixture
from genenv.parity.llamagen import check_llamagen, check_llamagen_vq

PARITY = Path(__file__).parents[3] / "shared" / "parity"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason="the reference vectors are not beside this checkout"
)
GRID, CODES, CLASSES = 3, 10, 4


def small_transformer(dropout=0.0):
    torch.manual_seed(0)
    model = LlamaGenTransformer(GRID, CODES, 16, 2, 2, multiple_of=8, num_classes=CLASSES, dropout=dropout)
    for parameter in model.parameters():
        parameter.data.mul_(5)  # far from uniform
    return model.eval().requires_grad_(False)


def small_tokenizer(ch_mult=(1, 2)):
    torch.manual_seed(0)
    return LlamaGenVQ(ch=32, ch_mult=ch_mult, z_channels=8, codebook_size=20, codebook_dim=4).eval()


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(CODES, (3, GRID**2), generator=generator), torch.tensor([0, 3, CLASSES])


def test_a_prediction_depends_on_the_tokens_before_it_only(batch):
    tokens, labels = batch
    model = small_transformer()
    logits, _ = model(tokens, labels)
    for place in range(GRID**2):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % CODES
        moved = (model(changed, labels)[0] - logits).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [False] * (place + 1) + [True] * (GRID**2 - place)


def test_the_rotary_table_turns_half_the_pairs_with_the_row_and_half_with_the_column():
    table = rotary_table(torch.arange(10), 3, 8)
    assert table.shape == (10, 4, 2)
    assert not table[0].any()  # the class token
    place = 1 + 3 * 2 + 1  # row 2, column 1
    angle = torch.tensor([2.0, 0.02, 1.0, 0.01])
    torch.testing.assert_close(table[place], torch.stack([angle.cos(), angle.sin()], dim=-1))
    assert torch.equal(rotary_table(torch.arange(4, 7), 3, 8), table[4:7])


def test_the_rotary_table_of_a_file_is_passed_over(batch):
    model = small_transformer()
    state = model.state_dict()
    state["freqs_cis"] = torch.zeros(3)
    other = LlamaGenTransformer(GRID, CODES, 16, 2, 2, multiple_of=8, num_classes=CLASSES).eval()
    other.load_state_dict(state)
    assert torch.equal(other(*batch)[0], model(*batch)[0])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surplus"):
        other.load_state_dict(state | {"surplus": torch.zeros(1)})


def test_dropout_acts_in_training_alone(batch):
    model = small_transformer(dropout=0.5)
    assert torch.equal(model(*batch)[0], small_transformer()(*batch)[0])
    model.train()
    assert not torch.equal(model(*batch)[0], model(*batch)[0])


def test_the_tokenizer_turns_images_into_codes_and_back():
    model = small_tokenizer().requires_grad_(False)
    images = torch.rand(2, 3, 8, 12)
    tokens = model.encode(images)
    assert tokens.shape == (2, 4, 6)
    assert tokens.dtype == torch.int64
    rebuilt = model.decode(tokens)
    assert rebuilt.shape == images.shape
    assert torch.equal(rebuilt, ((model.decode_unclamped(tokens) + 1) / 2).clamp(0, 1))


def test_the_length_of_a_codebook_entry_does_not_matter():
    model = small_tokenizer().requires_grad_(False)
    images = torch.rand(2, 3, 8, 8)
    tokens = model.encode(images)
    entries = model.quantize(tokens)
    torch.testing.assert_close(entries.norm(dim=1), torch.ones(2, 4, 4))
    model.quantize.embedding.weight.mul_(torch.rand(20, 1) + 0.1)
    assert torch.equal(model.encode(images), tokens)
    torch.testing.assert_close(model.quantize(tokens), entries)


def test_the_nearest_code_is_found_by_looking_at_all():
    model = small_tokenizer().requires_grad_(False)
    latents = torch.randn(3, 4, 2, 2)
    unit = torch.nn.functional.normalize(latents, dim=1).permute(0, 2, 3, 1)
    entries = model.quantize(torch.arange(20).view(20, 1, 1))[:, :, 0, 0]
    expected = (unit[..., None, :] - entries).square().sum(-1).argmin(-1)
    assert torch.equal(model.quantize.nearest(latents), expected)


def shapes_of(name):
    listing = json.loads((PARITY / "real_state_dict_shapes" / f"{name}.json").read_text())
    return {key: tuple(shape) for key, (shape, _) in listing["state_dict"].items()}, listing["parameters"]


@needs_parity
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("c2i_B_256", lambda: llamagen_imagenet("B", 16)),
        ("c2i_L_256", lambda: llamagen_imagenet("L", 16)),
        ("c2i_XL_384", lambda: llamagen_imagenet("XL", 24)),
        ("c2i_XXL_384", lambda: llamagen_imagenet("XXL", 24)),
        ("c2i_3B_384", lambda: llamagen_imagenet("3B", 24)),
        ("vq_ds16_c2i", LlamaGenVQ),
        ("vq_ds8_c2i", lambda: LlamaGenVQ(ch_mult=(1, 2, 2, 4))),
    ],
)
def test_the_released_sizes_have_the_released_names_and_shapes(name, build):
    with torch.device("meta"):
        model = build()
    shapes, count = shapes_of(name)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == shapes
    assert sum(p.numel() for p in model.parameters()) == count


def test_every_released_size_divides_into_heads():
    for width, _, heads in RELEASED.values():
        assert width % (4 * heads) == 0


@needs_parity
@pytest.mark.parametrize(
    ("folder", "check"), [("llamagen", check_llamagen), ("llamagen_vq", check_llamagen_vq)]
)
def test_the_reference_vectors_are_reproduced(folder, check):
    results = list(check(Fixture(PARITY / folder)))
    assert results
    assert [result for result in results if not result.ok] == []
