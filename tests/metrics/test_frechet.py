import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from genenv.metrics.frechet import Moments, frechet_distance, moments, symmetric_root


def features(n, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    return torch.randn(n, dim, generator=generator, dtype=torch.float64) @ mixing + seed


def test_moments_are_the_mean_and_the_unbiased_covariance():
    mean, covariance = moments(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert mean.tolist() == [1.0, 3.0]
    assert covariance.tolist() == [[2.0, 4.0], [4.0, 8.0]]
    assert mean.dtype == covariance.dtype == torch.float64


def test_moments_of_a_single_dimension_have_a_matrix_too():
    mean, covariance = moments(torch.tensor([[1.0], [4.0], [7.0]]))
    assert covariance.tolist() == [[9.0]]
    assert frechet_distance(mean, covariance, torch.zeros(1), torch.ones(1, 1)) == pytest.approx(16 + 4)


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_of_batches_are_those_of_all_features_however_far_from_zero(offset):
    whole = features(230) + offset
    streamed = Moments(6)
    for batch in whole.split(37):
        streamed.update(batch)
    streamed.update(whole[:0])
    mean, covariance = moments(whole)
    assert streamed.count == 230
    torch.testing.assert_close(streamed.mean, mean, rtol=1e-14, atol=0)
    torch.testing.assert_close(streamed.covariance, covariance, rtol=1e-9, atol=1e-9)


def test_moments_of_two_streams_can_be_merged():
    whole, halves = features(100), (Moments(6), Moments(6))
    for half, part in zip(halves, whole.split(30), strict=False):
        half.update(part)
    halves[1].update(whole[60:])
    halves[0].merge(halves[1])
    halves[0].merge(Moments(6))
    torch.testing.assert_close(halves[0].covariance, moments(whole)[1])


def test_moments_take_no_more_room_for_more_features():
    streamed, sizes = Moments(6), []
    for batch in features(400).split(20):
        streamed.update(batch)
        sizes.append(sum(t.untyped_storage().nbytes() for t in (streamed.mean, streamed.scatter)))
    assert sizes[1] == sizes[-1] == 8 * (6 + 36)


def test_a_covariance_of_one_feature_is_refused():
    streamed = Moments(3)
    streamed.update(torch.ones(1, 3))
    with pytest.raises(ValueError, match="a covariance needs at least 2 features, got 1"):
        _ = streamed.covariance


def test_the_symmetric_root_squared_is_the_matrix():
    covariance = moments(features(50))[1]
    root = symmetric_root(covariance)
    torch.testing.assert_close(root @ root, covariance)
    torch.testing.assert_close(root, root.T)


def test_gaussians_with_diagonal_covariances_have_a_closed_form():
    mean1, mean2 = torch.tensor([0.0, 1.0, -2.0]), torch.tensor([0.5, 3.0, -2.0])
    std1, std2 = torch.tensor([1.0, 2.0, 0.1]), torch.tensor([3.0, 2.0, 0.4])
    found = frechet_distance(mean1, std1.square().diag(), mean2, std2.square().diag())
    assert found == pytest.approx(0.25 + 4.0 + 4.0 + 0.0 + 0.09, rel=1e-6)


def test_a_gaussian_is_no_distance_from_itself():
    one = moments(features(50))
    assert frechet_distance(*one, *one) == pytest.approx(0.0, abs=1e-10)


def test_the_distance_is_symmetric():
    one, other = moments(features(50)), moments(features(70, seed=1))
    assert frechet_distance(*one, *other) == pytest.approx(frechet_distance(*other, *one), rel=1e-12)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_distance_is_that_of_torch_fidelity(seed):
    one, other = features(200), features(300, seed=seed)
    statistics = (fid_features_to_statistics(x) for x in (one, other))
    expected = fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
    assert frechet_distance(*moments(one), *moments(other)) == pytest.approx(expected, rel=1e-4)


def test_singular_covariances_have_a_distance():
    one = torch.tensor(
        [[1.0, 1.0], [1.0, 1.0]], dtype=torch.float64
    )  # std 1 along both axes, wholly correlated
    point = torch.zeros(2, 2)
    mean = torch.zeros(2)
    assert frechet_distance(mean, one, mean, point) == pytest.approx(2.0, abs=1e-6)
    assert frechet_distance(mean, one, mean, 4 * one) == pytest.approx(
        2.0, abs=1e-6
    )  # sqrt(2), twice as long
    few = moments(features(4, dim=10))  # rank 3
    assert frechet_distance(*few, *few) == pytest.approx(0.0, abs=1e-5)
