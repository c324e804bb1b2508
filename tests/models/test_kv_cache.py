import pytest
import torch

from genenv.models.kv_cache import KVCache


@pytest.fixture
def cache():
    return KVCache(2, num_rows=4, num_heads=3, capacity=6, head_dim=5, device="cpu", dtype=torch.float32)


def draw(rows, length):
    return torch.randn(rows, 3, length, 5), torch.randn(rows, 3, length, 5)


def test_a_write_returns_everything_up_to_its_end(cache):
    first, second = draw(4, 2), draw(4, 3)
    cache.write(1, slice(None), 0, *first)
    keys, values = cache.write(1, slice(None), 2, *second)
    assert torch.equal(keys, torch.cat([first[0], second[0]], dim=2))
    assert torch.equal(values, torch.cat([first[1], second[1]], dim=2))
    assert cache.length == 5


def test_rows_and_layers_are_written_apart(cache):
    upper, lower, other = draw(2, 3), draw(2, 3), draw(4, 3)
    cache.write(0, slice(0, 2), 0, *upper)
    cache.write(0, slice(2, 4), 0, *lower)
    cache.write(1, slice(None), 0, *other)
    keys, _ = cache.write(0, slice(None), 3, *draw(4, 1))
    assert torch.equal(keys[:, :, :3], torch.cat([upper[0], lower[0]]))


def test_a_cache_that_did_not_go_on_is_written_in_place(cache):
    cache.write(0, slice(None), 0, *draw(4, 2))
    assert cache.branch(2) is cache
    assert cache.branch(3) is cache


def test_a_cache_that_went_on_is_copied_and_keeps_its_own_future(cache):
    past, future, other = draw(4, 2), draw(4, 2), draw(4, 2)
    cache.write(0, slice(None), 0, *past)
    cache.write(0, slice(None), 2, *future)
    branch = cache.branch(2)
    keys, _ = branch.write(0, slice(None), 2, *other)
    assert torch.equal(keys, torch.cat([past[0], other[0]], dim=2))
    kept, _ = cache.write(0, slice(None), 4, *draw(4, 1))
    assert torch.equal(kept[:, :, :4], torch.cat([past[0], future[0]], dim=2))


def test_a_catching_up_half_does_not_shorten_the_cache(cache):
    cache.write(0, slice(0, 2), 0, *draw(2, 5))
    cache.write(0, slice(2, 4), 0, *draw(2, 3))
    assert cache.length == 5
