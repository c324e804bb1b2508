"""What every transformer over tokens in raster order keeps."""

import pytest
import torch

from genenv.models.llamagen import LlamaGenTransformer, llamagen_digits
from genenv.models.vqgan_transformer import VQGANTransformer, vqgan_digits

GRID, CODES, CLASSES = 3, 10, 4
LENGTH = GRID**2
SMALL = {
    "llamagen": lambda: LlamaGenTransformer(GRID, CODES, 16, 2, 2, multiple_of=8, num_classes=CLASSES),
    "vqgan": lambda: VQGANTransformer(GRID, CODES, 16, 2, 2, num_classes=CLASSES),
}


@pytest.fixture(params=SMALL)
def model(request):
    """A small network whose predictions are far from uniform, and none of whose biases is 0."""
    torch.manual_seed(0)
    model = SMALL[request.param]()
    for parameter in model.parameters():
        parameter.data.mul_(3).add_(0.1 * torch.randn(parameter.shape))
    return model.eval().requires_grad_(False)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(CODES, (3, LENGTH), generator=generator), torch.tensor([0, 3, CLASSES])


def test_reading_token_by_token_gives_what_one_pass_gives(model, batch):
    tokens, labels = batch
    logits, features = model(tokens[:, :-1], labels)
    cache = model.new_cache(3)
    for j in range(LENGTH):
        entry = tokens[:, j - 1 : j] if j else tokens[:, :0]
        one = model.read(entry, labels if j == 0 else None, j, cache, slice(0, 3))
        torch.testing.assert_close(one[0], logits[:, j])
        torch.testing.assert_close(one[1], features[:, j])
    assert cache.length == LENGTH


@pytest.mark.parametrize("first", [0, 1, 4])
def test_several_entries_can_be_read_at_once_into_some_rows(first, model, batch):
    tokens, labels = batch
    cache = model.new_cache(5)
    if first:
        model.read(tokens[:, : first - 1], labels, 0, cache, slice(2, 5))
    rest = tokens[:, max(first - 1, 0) : 7]
    logits, _ = model.read(rest, None if first else labels, first, cache, slice(2, 5))
    torch.testing.assert_close(logits, model(tokens[:, :7], labels)[0][:, 7])


@pytest.mark.parametrize("make", [llamagen_digits, vqgan_digits])
def test_the_digits_generator_is_small_and_runs_in_half_precision(make):
    model = make().eval().requires_grad_(False)
    assert 4e5 < sum(p.numel() for p in model.parameters()) < 6e5
    model = model.to(torch.bfloat16)
    cache = model.new_cache(2)
    tokens = torch.zeros(2, 1, dtype=torch.int64)
    logits, features = model.read(tokens, torch.tensor([0, 10]), 0, cache, slice(0, 2))
    assert cache.keys.dtype == logits.dtype == features.dtype == torch.bfloat16
    assert logits.isfinite().all()
