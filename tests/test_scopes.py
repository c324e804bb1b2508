import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from genenv.rng import BatchRng, Stream
from genenv.scopes import Adaptive, Detector, Fixed, Full, Random, mask, parse_scope
from genenv.solvers import VPLinear

HORIZON = 50


def rng(number=4, first=0, **kwargs):
    return BatchRng(torch.arange(first, first + number), **kwargs)


def window_of_one(detector, semantic, reward, horizon):
    """Returns (start, end) of one image by the words of the docstring, with lists of numbers."""

    def smooth(points):
        curve = [points[0]]
        for point in points[1:]:
            curve.append(detector.smoothing * curve[-1] + (1 - detector.smoothing) * point)
        return curve

    def small(sizes, k, threshold, patience):
        """Returns whether the last `patience` sizes up to k are small against the largest before or at each."""
        return all(
            i in sizes and sizes[i] <= threshold * max(size for j, size in sizes.items() if j <= i)
            for i in range(k - patience + 1, k + 1)
        )

    def changes(c):
        return {k: abs(c[k] - c[k - 1]) for k in range(1, len(c))}

    def bends(c):
        return {k: abs(c[k] - 2 * c[k - 1] + c[k - 2]) for k in range(2, len(c))}

    def straight(c, k):
        way = sum(changes(c)[i] for i in range(1, k + 1))
        return abs(c[k] - c[0]) / way if way else 1.0

    latest_start, latest_end, shortest = (
        round(share * horizon) for share in (detector.latest_start, detector.latest_end, detector.shortest)
    )
    curve = smooth(semantic)
    start = next(
        (
            k
            for k in range(latest_start)
            if k < len(curve)
            and small(bends(curve), k, detector.start_threshold, detector.start_patience)
            and straight(curve, k) >= detector.straightness
        ),
        latest_start,
    )
    curve = smooth(reward)
    earliest, latest = start + shortest, min(max(latest_end, start + shortest), horizon)
    end = next(
        (
            k
            for k in range(earliest, min(latest, len(curve)))
            if small(bends(curve), k, detector.end_threshold, detector.end_patience)
            and small(changes(curve), k, detector.end_threshold, detector.end_patience)
        ),
        latest,
    )
    return start, end


shares = st.floats(0, 1)
detectors = st.builds(
    lambda latest, **kwargs: Detector(latest_start=min(latest), latest_end=max(latest), **kwargs),
    latest=st.tuples(shares, shares),
    start_threshold=st.floats(0, 0.99),
    end_threshold=st.floats(0, 0.99),
    start_patience=st.integers(1, 5),
    end_patience=st.integers(1, 5),
    smoothing=st.sampled_from([0.0, 0.5, 0.9]),
    shortest=shares,
    straightness=st.sampled_from([0.0, 0.31, 0.72]),
)
curves = st.tuples(st.integers(1, 14), st.integers(1, 4), st.integers(0, 2**32), st.integers(0, 3)).map(
    lambda drawn: wobbling(*drawn)
)


def wobbling(horizon, number, seed, kind):
    """Returns two curves (T, N) float64: rough, saturating, on few levels, or mixed in time."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.randn(2, horizon, number, generator=generator, dtype=torch.float64)
    rates = torch.rand(2, 1, number, generator=generator, dtype=torch.float64)
    saturating = 1 - torch.exp(-3 * rates * torch.arange(horizon)[:, None])
    steps = rough.clamp(-1, 1).round()
    later = torch.arange(horizon)[:, None] > horizon // 2
    return [rough, saturating, steps, torch.where(later, saturating, rough)][kind].unbind(0)


@given(detectors, curves)
def test_a_window_is_found_image_by_image_as_the_words_say(detector, drawn):
    semantic, reward = drawn
    horizon, number = semantic.shape
    found = detector.window(semantic, reward, horizon)
    expected = [
        window_of_one(detector, semantic[:, i].tolist(), reward[:, i].tolist(), horizon)
        for i in range(number)
    ]
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == expected


@given(detectors, curves)
def test_whether_a_decision_is_inside_follows_from_the_points_up_to_it(detector, drawn):
    semantic, reward = drawn
    horizon = len(semantic)
    online = mask(Adaptive(detector), horizon, rng(semantic.shape[1]), semantic, reward)
    whole = detector.window(semantic, reward, horizon)
    assert torch.equal(online, torch.stack([whole.contains(k) for k in range(horizon)]))


@given(detectors, curves)
def test_a_window_lies_in_the_horizon_and_is_no_shorter_than_the_shortest(detector, drawn):
    horizon = len(drawn[0])
    found = detector.window(*drawn, horizon)
    assert (found.start <= found.end).all()
    assert (found.end <= horizon).all()
    length = found.end - found.start
    assert ((length >= round(detector.shortest * horizon)) | (found.end == horizon)).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.5])
@pytest.mark.parametrize(("turn", "saturation"), [(4, 20), (8, 33)])
def test_a_window_opens_where_a_curve_gets_straight_and_closes_where_another_gets_flat(
    smoothing, turn, saturation
):
    k = torch.arange(HORIZON, dtype=torch.float64)
    semantic = torch.where(k < turn, (k / turn) ** 2, 1 + (k - turn) / turn)[:, None]
    reward = k.clamp(max=saturation)[:, None]
    detector = Detector(0.1, 0.1, smoothing=smoothing, latest_start=0.5, latest_end=1.0)
    found = detector.window(semantic, reward, HORIZON)
    seen = (turn + 3, saturation + 4)  # bends reach back two points, and must be small two and three times
    delay = 0 if smoothing == 0 else 5  # until an average forgets
    assert seen[0] <= found.start.item() <= seen[0] + delay
    assert seen[1] <= found.end.item() <= seen[1] + delay


def test_a_steady_rise_does_not_end_a_window_and_a_curve_that_goes_on_bending_does_not_delay_it_for_ever():
    k = torch.arange(HORIZON, dtype=torch.float64)[:, None]
    bending = (-1) ** k
    found = Detector().window(bending, k, HORIZON)
    assert (found.start.item(), found.end.item()) == (10, 40)
    found = Detector(latest_start=0.1, latest_end=0.7).window(bending, bending, HORIZON)
    assert (found.start.item(), found.end.item()) == (5, 35)


def test_a_curve_that_only_trembles_has_not_settled():
    k = torch.arange(30.0)[:, None]
    trembling = 0.01 * torch.cos(2.5 * k + 0.3 * k.square())
    rising = torch.cat([torch.zeros(10, 1), 0.05 * torch.arange(20.0)[:, None]])

    def start(straightness):
        detector = Detector(straightness=straightness, latest_start=1.0, latest_end=1.0)
        return int(detector.window(trembling + rising, k / 30, 30).start)

    assert start(0.0) < 10 < start(0.7) < 20


@pytest.mark.parametrize(
    ("latest", "horizon", "fits"), [(0.2, 20, False), (0.2, 30, True), (0.6, 8, True), (0.6, 6, False)]
)
def test_a_horizon_without_room_for_a_start_is_refused(latest, horizon, fits):
    detector = Detector(latest_start=latest, latest_end=1.0)
    if fits:
        detector.check_room(horizon)
        return
    with pytest.raises(
        ValueError, match=f"latest_start must leave room .* takes 4 decisions, got {latest} of {horizon}"
    ):
        detector.check_room(horizon)


@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_flat_curves_have_nothing_to_wait_for(horizon):
    flat = torch.ones(horizon, 3)
    found = Detector(latest_start=1.0, latest_end=1.0, shortest=0.0).window(flat, flat, horizon)
    assert found.start.tolist() == [min(3, horizon)] * 3
    assert found.end.tolist() == [min(4, horizon)] * 3


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"start_threshold": -0.1}, r"start_threshold must be in \[0, 1\), got -0\.1"),
        ({"end_threshold": 1.0}, r"end_threshold must be in \[0, 1\), got 1\.0"),
        ({"start_patience": 0}, "start_patience must be finite and at least 1, got 0"),
        ({"end_patience": 0}, "end_patience must be finite and at least 1, got 0"),
        ({"smoothing": math.nan}, r"smoothing must be in \[0, 1\), got nan"),
        ({"latest_start": 1.1}, r"latest_start must be in \[0, 1\], got 1\.1"),
        ({"shortest": -1}, r"shortest must be in \[0, 1\], got -1"),
        (
            {"latest_start": 0.5, "latest_end": 0.4},
            r"latest_end must be at least latest_start, 0\.5, got 0\.4",
        ),
    ],
)
def test_a_detector_refuses_what_is_not_legal_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Detector(**kwargs)


@pytest.mark.parametrize("shape", [(3,), (4, 2), (3, 1), (9, 2), (0, 2)])
def test_curves_that_do_not_fit_are_refused(shape):
    reward = torch.zeros(shape)
    semantic = reward if shape in ((3,), (9, 2), (0, 2)) else torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"must be curves \(K, N\) of the same images with K = 1 to 8, got"):
        Detector().window(semantic, reward, 8)


@pytest.mark.parametrize("curves", [(), (torch.zeros(3, 4), torch.zeros(3, 4)), (None, torch.zeros(8, 4))])
def test_an_adaptive_scope_misses_its_curves(curves):
    with pytest.raises(ValueError, match=r"semantic and reward must be curves .* with K = [14], got"):
        mask(Adaptive(), 8, rng(), *curves)


def test_every_decision_some_or_none_may_count():
    assert mask(Full(), 5, rng()).tolist() == [[True] * 4] * 5
    assert mask(Fixed(1, 3), 5, rng()).tolist() == [[k in (1, 2)] * 4 for k in range(5)]
    assert not mask(Fixed(2, 2), 5, rng()).any()
    assert mask(Fixed(0, 5), 5, rng()).all()


@pytest.mark.parametrize("size", range(7))
def test_random_decisions_are_as_many_of_each_image_and_its_own(size):
    found = mask(Random(size), 6, rng(100))
    assert found.sum(0).tolist() == [size] * 100
    assert torch.equal(mask(Random(size), 6, rng(3, first=40)), found[:, 40:43])
    if 0 < size < 6:
        assert len(found.unique(dim=1).T) > 5
        for other in (rng(100, episode=1), rng(100, stream=Stream.HELD_OUT)):
            assert not torch.equal(mask(Random(size), 6, other), found)


def test_random_decisions_are_equally_likely():
    found = mask(Random(3), 8, rng(20_000)).double().mean(1)
    assert found.tolist() == pytest.approx([3 / 8] * 8, abs=0.015)


@pytest.mark.parametrize(
    ("spec", "scope"),
    [
        ("full", Full()),
        ("fixed:5:32", Fixed(5, 32)),
        ("fixed:0:0", Fixed(0, 0)),
        ("adaptive", Adaptive(Detector())),
        ("random:12", Random(12)),
    ],
)
def test_a_scope_is_named(spec, scope):
    assert parse_scope(spec) == scope
    assert scope.needs_curves == (spec == "adaptive")


def test_an_adaptive_scope_takes_a_detector():
    detector = Detector(smoothing=0.2)
    assert parse_scope("adaptive", detector) == Adaptive(detector)


@pytest.mark.parametrize(
    "spec",
    ["", "none", "Full", "fixed", "fixed:3", "fixed:-1:4", "fixed:1:2:3", "random", "random:x", 5, None],
)
def test_a_scope_that_is_none_is_refused(spec):
    with pytest.raises(
        ValueError, match=r"scope must be 'full', 'adaptive', 'fixed:START:END' .*, got "
    ) as error:
        parse_scope(spec)
    assert repr(spec) in str(error.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: parse_scope("fixed:4:3"), "must have 0 <= start <= end, got start 4 and end 3"),
        (lambda: Fixed(-1, 3), "must have 0 <= start <= end, got start -1 and end 3"),
        (lambda: Random(-2), "size of at least 0, got -2"),
        (lambda: mask(Fixed(2, 9), 8, rng()), "within the horizon of 8 decisions, got end 9"),
        (lambda: mask(Random(9), 8, rng()), "at most the horizon's 8 decisions, got 9"),
    ],
)
def test_decisions_that_do_not_exist_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


SCHEDULES = {
    "linear": (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0),
    "cosine": torch.cos((torch.arange(1000, dtype=torch.float64) / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2,
    "continuous": VPLinear().alpha(torch.linspace(0.01, 1, 1000, dtype=torch.float64)) ** 2,
}
"""alpha-bar (T,) of Ho et al. 2020, Nichol and Dhariwal 2021, and Song et al. 2021."""
COVARIANCES = {
    "white": torch.eye(3),
    "correlated": torch.tensor([[1.0, 0.8, -0.3], [0.8, 1.0, 0.1], [-0.3, 0.1, 1.0]]),
    "uneven": torch.tensor([[4.0, 0.5, 0.0], [0.5, 0.2, -0.1], [0.0, -0.1, 1.0]]),
}


def correlations(now, later, covariance):
    """Returns Corr(x_t^i, x_s^j) of latents with alpha-bar `now` at t and `later` at s > t (AdaScope, Theorem 2)."""
    ends = torch.tensor([now, later], dtype=torch.float64)
    variance = ends * covariance.diagonal()[:, None] + 1 - ends  # (D, 2)
    shared = math.sqrt(later * now) * covariance + math.sqrt(later / now) * (1 - now) * torch.eye(3)
    return shared / (variance[:, None, 0] * variance[None, :, 1]).sqrt()


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("t", "later"), [(1, 8), (20, 35), (45, 49)])
def test_neighbouring_latents_correlate_in_closed_form(covariance, schedule, t, later):
    steps, sigma = SCHEDULES[schedule][19::20].tolist(), COVARIANCES[covariance].double()  # 50 decisions
    generator = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(100_000, 3, generator=generator, dtype=torch.float64)

    data = noise() @ torch.linalg.cholesky(sigma).T
    first = math.sqrt(steps[t]) * data + math.sqrt(1 - steps[t]) * noise()
    x = first
    for before, after in zip(steps[t:later], steps[t + 1 : later + 1], strict=True):
        x = math.sqrt(after / before) * x + math.sqrt(1 - after / before) * noise()
    found = torch.cat([first, x], dim=1).T.corrcoef()[:3, 3:]
    torch.testing.assert_close(found, correlations(steps[t], steps[later], sigma), atol=0.015, rtol=0)


@pytest.mark.parametrize("number", [20, 50, 1000])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_neighbouring_latents_change_less_and_less_where_the_data_vary_as_the_noise_does(schedule, number):
    """The paper's Lemma 1, for a number of the latents and its own neighbour.

    Corr^2 = (sigma_t^2 + v) / (sigma_s^2 + v) with data of variance v and sigma^2 = 1 / SNR. It holds for latents that
    are scaled to the variance 1, and down to 1/4; data that hardly vary move most at the end, relative to their noise.
    """
    steps = SCHEDULES[schedule][1000 // number - 1 :: 1000 // number].tolist()

    def change(variance):
        sigma = variance * torch.eye(3, dtype=torch.float64)
        pairs = itertools.pairwise(steps)
        return torch.tensor([1 - correlations(t, s, sigma)[0, 0] for t, s in pairs], dtype=torch.float64)

    for variance in (0.25, 1.0, 4.0, 100.0):
        assert (change(variance).diff() > 0).all()  # in the order of generation it falls
    assert not (change(0.01).diff() > 0).all()
