import pytest
import torch
import torch.nn.functional as F

from genenv.models.vqgan import VQGAN

CH, CODES, DIM, Z = 32, 20, 4, 8


def small(ch_mult=(1, 2)):
    torch.manual_seed(0)
    return VQGAN(CH, ch_mult, 1, Z, CODES, DIM).eval().requires_grad_(False)


def named(prefix, *layers):
    return [f"{prefix}.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")]


def test_the_parameters_have_the_official_names():
    block, attention = ("norm1", "conv1", "norm2", "conv2"), ("norm", "q", "k", "v", "proj_out")
    expected = ["quantize.embedding.weight"]
    for side in ("encoder", "decoder"):
        expected += named(side, "conv_in", "norm_out", "conv_out")
        expected += named(f"{side}.mid.block_1", *block) + named(f"{side}.mid.block_2", *block)
        expected += named(f"{side}.mid.attn_1", *attention)
    expected += named("encoder.down.0.block.0", *block) + named("encoder.down.0.downsample", "conv")
    expected += named("encoder.down.1.block.0", *block, "nin_shortcut")
    expected += named("encoder.down.1.attn.0", *attention)
    for i in range(2):
        expected += named(f"decoder.up.1.block.{i}", *block) + named(f"decoder.up.1.attn.{i}", *attention)
        expected += named(f"decoder.up.0.block.{i}", *block, *(["nin_shortcut"] if i == 0 else []))
    expected += named("decoder.up.1.upsample", "conv")
    expected += [
        f"{name}.{kind}" for name in ("quant_conv", "post_quant_conv") for kind in ("weight", "bias")
    ]
    assert sorted(small().state_dict()) == sorted(expected)


def test_the_losses_of_a_file_are_passed_over():
    model, other = small(), VQGAN(CH, (1, 2), 1, Z, CODES, DIM).eval()
    other.load_state_dict(model.state_dict() | {"loss.discriminator.main.0.weight": torch.zeros(1)})
    tokens = torch.arange(4).view(1, 2, 2)
    assert torch.equal(other.decode(tokens), model.decode(tokens))
    with pytest.raises(RuntimeError, match=r"Unexpected key.*lossless"):
        other.load_state_dict(model.state_dict() | {"lossless": torch.zeros(1)})


@pytest.mark.parametrize("ch_mult", [(1,), (1, 2), (1, 1, 2)])
def test_tokens_become_images_and_images_tokens(ch_mult):
    model = small(ch_mult)
    tokens = torch.randint(CODES, (2, 3, 5), generator=torch.Generator().manual_seed(0))
    images = model.decode(tokens)
    assert images.shape == (2, 3, 3 * model.downsampling, 5 * model.downsampling)
    assert torch.equal(images, ((model.decode_unclamped(tokens) + 1) / 2).clamp(0, 1))
    assert model.encode(images).shape == tokens.shape


def test_a_token_is_the_nearest_codebook_entry():
    model = small()
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    latents = model.quant_conv(model.encoder(2 * images - 1))
    entries = model.quantize.embedding.weight[None, :, :, None, None]
    distance = (latents[:, None] - entries).square().sum(2)  # (N, V, h, w)
    assert torch.equal(model.encode(images), distance.argmin(1))


def test_entries_keep_their_length_in_the_decoder():
    model = small()
    tokens = torch.arange(4).view(1, 2, 2)
    entries = F.embedding(tokens, model.quantize.embedding.weight).permute(0, 3, 1, 2)
    expected = model.decoder(model.post_quant_conv(entries))
    assert torch.equal(model.decode_unclamped(tokens), expected)
