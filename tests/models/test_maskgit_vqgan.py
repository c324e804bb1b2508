import torch

from genenv.models.maskgit_vqgan import MaskGITVQGAN


def small():
    torch.manual_seed(0)
    return MaskGITVQGAN(ch=32, ch_mult=(1, 1, 2), num_res_blocks=1, z_channels=8, n_embed=16).eval()


@torch.no_grad()
def test_tokens_become_images_and_images_tokens():
    model = small()
    tokens = torch.randint(16, (2, 3, 5))
    images = model.decode(tokens)
    assert images.shape == (2, 3, 3 * model.downsampling, 5 * model.downsampling)
    assert 0 <= images.min() <= images.max() <= 1
    assert model.encode(images).shape == tokens.shape


@torch.no_grad()
def test_a_token_is_the_nearest_codebook_entry():
    model = small()
    images = torch.rand(2, 3, 8, 8)
    latents = model.encoder(images)
    codebook = model.quantize.embedding.weight
    distance = (latents[:, None] - codebook[None, :, :, None, None]).square().sum(2)  # (N, V, h, w)
    assert torch.equal(model.encode(images), distance.argmin(1))


@torch.no_grad()
def test_the_shortcut_is_taken_of_the_processed_branch():
    block = small().encoder.down[2].block[0]
    assert block.nin_shortcut.weight.shape == (64, 64, 1, 1)
    torch.nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(torch.rand(1, 32, 4, 4)), torch.zeros(1, 64, 4, 4))
