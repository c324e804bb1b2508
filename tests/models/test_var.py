import json
from pathlib import Path

import pytest
import torch

from genenv.models.digits_msvq import DigitsMSVQ
from genenv.models.var import VARTransformer, var_d, var_digits
from genenv.models.var_vqvae import VARVQVAE, MultiScaleQuantiser
from genenv.parity.fixture import Fixture
from genenv.parity.var import check_var_vqvae

PARITY = Path(__file__).parents[3] / "shared" / "parity"
needs_parity = pytest.mark.skipif(
    not PARITY.is_dir(), reason="the reference vectors are not beside this checkout"
)
SIDES, CODES, CHANNELS, CLASSES = (1, 2, 4), 11, 6, 3
OFFSETS = (0, 1, 5, 21)


@pytest.fixture(params=[False, True], ids=["own modulation", "shared modulation"])
def transformer(request):
    torch.manual_seed(0)
    model = VARTransformer(SIDES, CODES, CHANNELS, 16, 2, 2, num_classes=CLASSES, shared_aln=request.param)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval().requires_grad_(False)


@pytest.fixture
def quantiser():
    torch.manual_seed(0)
    return MultiScaleQuantiser(SIDES, CODES, CHANNELS).requires_grad_(False)


def draw_inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, OFFSETS[-1] - 1, CHANNELS, generator=generator), torch.arange(4) % (CLASSES + 1)


def shapes(model):
    return {name: [list(value.shape), str(value.dtype)[6:]] for name, value in model.state_dict().items()}


@needs_parity
@pytest.mark.parametrize("depth", [16, 20, 24, 30, 36])
def test_the_released_transformers_have_these_parameters(depth):
    with torch.device("meta"):
        model = var_d(depth)
    released = json.loads((PARITY / "real_state_dict_shapes" / f"var_d{depth}.json").read_text())
    assert shapes(model) == released["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == released["parameters"]


@needs_parity
def test_the_released_tokenizer_has_these_parameters():
    with torch.device("meta"):
        model = VARVQVAE()
    released = json.loads((PARITY / "real_state_dict_shapes" / "vae_ch160v4096z32.json").read_text())
    assert shapes(model) == released["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == released["parameters"]
    assert model.image_shape == (3, 256, 256)


@needs_parity
def test_the_tokenizer_agrees_with_the_reference():
    wrong = [result for result in check_var_vqvae(Fixture(PARITY / "var_vqvae")) if not result.ok]
    assert wrong == []


@pytest.mark.parametrize("ends", [(1, 2, 3), (2, 3), (1, 3)])
def test_reading_scale_after_scale_equals_reading_all_at_once(transformer, ends):
    maps, labels = draw_inputs()
    logits, hidden = transformer(maps, labels)
    cache, begin, parts = transformer.new_cache(4), 0, []
    for end in ends:
        known = max(0, OFFSETS[begin] - 1)
        parts.append(transformer(maps[:, known : OFFSETS[end] - 1], labels, begin, cache))
        begin = end
    torch.testing.assert_close(torch.cat([part[0] for part in parts], dim=1), logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], dim=1), hidden, rtol=1e-4, atol=1e-5)


def test_a_scale_sees_itself_and_what_came_before(transformer):
    maps, labels = draw_inputs()
    logits, _ = transformer(maps, labels)
    changed = maps.clone()
    changed[:, 3] += 1  # the last position of scale 1
    other, _ = transformer(changed, labels)
    same = (other == logits).all(-1)
    assert same[:, :1].all()
    assert not same[:, 1:].any()


def test_the_class_is_seen_by_every_position(transformer):
    maps, labels = draw_inputs()
    logits, _ = transformer(maps, labels)
    other, _ = transformer(maps, (labels + 1) % (CLASSES + 1))
    assert not (other == logits).all(-1).any()


def test_the_temperature_of_a_head_is_bounded(transformer):
    maps, labels = draw_inputs()
    results = []
    for scale in (4.0, torch.tensor(100.0).log().item(), 9.0):
        for block in transformer.blocks:
            block.attn.scale_mul_1H11.fill_(scale)
        results.append(transformer(maps, labels)[0])
    assert torch.equal(results[1], results[2])
    assert not torch.allclose(results[0], results[1])


def test_the_digits_network_is_small_and_fits_its_tokenizer():
    model, tokenizer = var_digits(), DigitsMSVQ()
    assert sum(parameter.numel() for parameter in model.parameters()) < 600_000
    tokens = tokenizer.encode(torch.rand(2, 1, 8, 8))
    logits, _ = model(tokenizer.quantize.maps(tokenizer.quantize.accumulate(tokens)), torch.tensor([0, 10]))
    assert tokens.shape == (2, 30)
    assert logits.shape == (2, 30, len(tokenizer.quantize.embedding.weight))


def test_every_scale_quantises_what_the_scales_before_it_left(quantiser):
    latents = torch.randn(2, CHANNELS, 4, 4)
    before = torch.zeros_like(latents)
    for scale, (tokens, accumulated) in enumerate(quantiser.quantise(latents)):
        left = quantiser.shrink(latents - before, scale)
        assert torch.equal(tokens, torch.cdist(left, quantiser.embedding.weight).argmin(-1))
        entries = quantiser.embedding(tokens)
        torch.testing.assert_close(accumulated, before + quantiser.expand(entries, scale))
        before = accumulated


def test_tokens_give_back_the_maps_they_were_made_with(quantiser):
    latents = torch.randn(2, CHANNELS, 4, 4)
    expected = [accumulated for _, accumulated in quantiser.quantise(latents)]
    steps = list(quantiser.accumulate(quantiser.encode(latents)))
    torch.testing.assert_close(steps, expected)
    maps = quantiser.maps(steps)
    assert maps.shape == (2, OFFSETS[-1] - 1, CHANNELS)
    assert torch.equal(maps[:, :4], quantiser.shrink(steps[0], 1))
    assert torch.equal(maps[:, 4:], quantiser.shrink(steps[1], 2))


def test_an_error_of_a_scale_is_corrected_by_the_scales_after_it(quantiser):
    latents = torch.randn(8, CHANNELS, 4, 4)
    wrong = (quantiser.encode(latents)[:, :1] + 1) % CODES

    def disturb(tokens):
        return wrong if tokens.shape[1] == 1 else tokens

    steps = list(quantiser.quantise(latents, disturb))
    assert torch.equal(steps[0][0], quantiser.encode(latents)[:, :1])
    tokens = torch.cat([wrong, steps[1][0], steps[2][0]], dim=1)
    torch.testing.assert_close([latents for _, latents in steps], list(quantiser.accumulate(tokens)))
    left = quantiser.shrink(latents - steps[0][1], 1)
    assert torch.equal(steps[1][0], quantiser.nearest(left))


def test_the_last_scale_is_neither_shrunk_nor_enlarged(quantiser):
    latents = torch.randn(2, CHANNELS, 4, 4)
    assert torch.equal(quantiser.shrink(latents, 2), latents.flatten(2).transpose(1, 2))
    for conv in quantiser.quant_resi["qresi_ls"]:
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    tokens = torch.randint(CODES, (2, 16))
    entries = quantiser.embedding(tokens).transpose(1, 2).view(2, CHANNELS, 4, 4)
    torch.testing.assert_close(quantiser.expand(quantiser.embedding(tokens), 2), entries / 2)


@pytest.mark.parametrize(
    ("num_scales", "expected"),
    [(4, [0, 1, 2, 3]), (10, [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]), (16, [k for k in range(4) for _ in range(4)])],
)
def test_neighbouring_scales_share_a_residual_convolution(num_scales, expected):
    quantiser = MultiScaleQuantiser(range(1, num_scales + 1), CODES, CHANNELS).requires_grad_(False)
    for i, conv in enumerate(quantiser.quant_resi["qresi_ls"]):
        torch.nn.init.zeros_(conv.weight)
        torch.nn.init.constant_(conv.bias, i)
    used = [
        quantiser.expand(torch.zeros(1, side**2, CHANNELS), scale).mean() * 2
        for scale, side in enumerate(quantiser.patch_nums)
    ]
    assert [round(value.item()) for value in used] == expected


def test_usage_counts_of_other_scales_are_accepted_and_left_out(quantiser):
    state = quantiser.state_dict()
    other = state | {"ema_vocab_hit_SV": torch.ones(7, CODES)}
    quantiser.load_state_dict(other)
    assert torch.equal(quantiser.ema_vocab_hit_SV, torch.zeros(len(SIDES), CODES))
    assert other["ema_vocab_hit_SV"].shape == (7, CODES)
    quantiser.load_state_dict(state | {"ema_vocab_hit_SV": torch.ones(len(SIDES), CODES)})
    assert torch.equal(quantiser.ema_vocab_hit_SV, torch.ones(len(SIDES), CODES))


@torch.no_grad()
@pytest.mark.parametrize("kind", [DigitsMSVQ, lambda: VARVQVAE((1, 2), ch=32, z_channels=8, vocab_size=16)])
def test_a_tokenizer_turns_images_into_tokens_and_back(kind):
    torch.manual_seed(0)
    model = kind()
    images = torch.rand(2, *model.image_shape)
    tokens = model.encode(images)
    assert tokens.shape == (2, sum(side**2 for side in model.quantize.patch_nums))
    *_, latents = model.quantize.accumulate(tokens)
    decoded = model.decode(50 * latents)
    assert decoded.shape == images.shape
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    again = torch.cat([model.encode(image[None]) for image in images])
    assert torch.equal(again, tokens)
