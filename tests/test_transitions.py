import itertools
import math

import pytest
import torch

from genenv.solvers import LinearPath, VPLinear, VPTable
from genenv.transitions import DDIM, TRANSITIONS, FlowSDE

TABLE = VPTable.of(torch.linspace(0.999, 0.95, 30, dtype=torch.float64).cumprod(0))
PATHS = {"vp": (VPLinear(), 0.8, 0.3), "table": (TABLE, 25.0, 7.0), "linear": (LinearPath(), 0.2, 0.65)}


def batch(*values, number=5):
    return [torch.full((number,), value, dtype=torch.float64) for value in values]


def latents_and_data(number=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, number, 2, 3, 3, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("eta", [0.3, 1.0])
@pytest.mark.parametrize("path", ["vp", "table"])
def test_ddim_is_that_of_the_paper(path, eta):
    path, time, following = PATHS[path]
    (latents, data), (t, s) = latents_and_data(), batch(time, following)
    mean, std = DDIM(path, eta).gaussian(latents, data, t, s)
    at, aprev = (float(path.alpha(x)[0]) ** 2 for x in (t, s))  # the paper's alpha
    noise = (latents - math.sqrt(at) * data) / math.sqrt(1 - at)
    sigma = eta * math.sqrt((1 - aprev) / (1 - at)) * math.sqrt(1 - at / aprev)
    torch.testing.assert_close(std, torch.full_like(std, sigma))
    torch.testing.assert_close(mean, math.sqrt(aprev) * data + math.sqrt(1 - aprev - sigma**2) * noise)


@pytest.mark.parametrize("path", PATHS)
def test_ddim_keeps_the_marginals_of_data_and_noise(path):
    path, time, following = PATHS[path]
    number, eta = 200_000, 0.8
    t, s = batch(time, following, number=number)
    generator = torch.Generator().manual_seed(0)
    data = torch.full((number, 1), 0.7, dtype=torch.float64)
    noise, drawn = torch.randn(2, number, 1, generator=generator, dtype=torch.float64)
    latents = path.alpha(t)[:, None] * data + path.sigma(t)[:, None] * noise
    mean, std = DDIM(path, eta).gaussian(latents, data, t, s)
    found = mean + std[:, None] * drawn
    assert found.mean().item() == pytest.approx(0.7 * path.alpha(s)[0].item(), abs=0.01)
    assert found.std().item() == pytest.approx(path.sigma(s)[0].item(), rel=0.01)


def test_with_hardly_any_noise_ddim_is_the_step_that_holds_data_and_noise():
    path, time, following = PATHS["linear"]
    (latents, data), (t, s) = latents_and_data(), batch(time, following)
    mean, std = DDIM(path, 1e-9).gaussian(latents, data, t, s)
    assert std.max() < 1e-9
    noise = (latents - time * data) / (1 - time)
    torch.testing.assert_close(mean, following * data + (1 - following) * noise)


@pytest.mark.parametrize("eta", [0.2, 0.7, 1.5])
def test_the_flow_sde_is_that_of_flow_grpo(eta):
    path, time, following = PATHS["linear"]
    (latents, data), (t, s) = latents_and_data(), batch(time, following)
    mean, std = FlowSDE(path, eta).gaussian(latents, data, t, s)
    sigma, step = 1 - time, (1 - following) - (1 - time)  # theirs: time is the noise, and falls
    velocity = (latents - time * data) / (1 - time) - data
    strength = eta * math.sqrt(sigma / (1 - sigma))
    theirs = latents + (velocity + strength**2 / (2 * sigma) * (latents + (1 - sigma) * velocity)) * step
    torch.testing.assert_close(mean, theirs)
    torch.testing.assert_close(std, torch.full_like(std, strength * math.sqrt(-step)))


def test_many_small_steps_of_the_flow_sde_keep_the_data():
    path, number, steps = LinearPath(), 50_000, 400
    generator = torch.Generator().manual_seed(0)
    data_std = 0.5  # of normal data, whose expected value behind latents is known
    times = torch.linspace(0.02, 0.98, steps + 1, dtype=torch.float64)
    spread = (times[0] ** 2 * data_std**2 + (1 - times[0]) ** 2).sqrt()
    x = spread * torch.randn(number, 1, generator=generator, dtype=torch.float64)
    for time, following in itertools.pairwise(times):
        t, s = (each.expand(number) for each in (time, following))
        data = x * time * data_std**2 / (time**2 * data_std**2 + (1 - time) ** 2)
        mean, std = FlowSDE(path, 0.7).gaussian(x, data, t, s)
        x = mean + std[:, None] * torch.randn(number, 1, generator=generator, dtype=torch.float64)
    wanted = (times[-1] ** 2 * data_std**2 + (1 - times[-1]) ** 2).sqrt().item()
    assert x.std().item() == pytest.approx(wanted, rel=0.03)
    assert x.mean().item() == pytest.approx(0, abs=0.01)


def test_the_flow_sde_is_refused_on_another_path():
    with pytest.raises(
        ValueError, match=r"'flow-sde' is that of the straight path, got VPLinear; use 'ddim'"
    ):
        FlowSDE(VPLinear(), 0.7)


@pytest.mark.parametrize(("kind", "eta"), [(DDIM, 0), (DDIM, 1.01), (FlowSDE, -1.0), (DDIM, math.nan)])
def test_a_strength_without_a_density_is_refused(kind, eta):
    with pytest.raises(ValueError, match=rf"eta must be above 0, .* at most {kind.most:g}, got {eta}"):
        kind(LinearPath(), eta)


@pytest.mark.parametrize("name", TRANSITIONS)
def test_every_image_has_times_of_its_own(name):
    transition = TRANSITIONS[name](LinearPath(), 0.5)
    latents, data = latents_and_data(3)
    time, following = torch.tensor([[0.1, 0.5, 0.8], [0.3, 0.6, 0.95]], dtype=torch.float64)
    mean, std = transition.gaussian(latents, data, time, following)
    for i in range(3):
        each = (x[i : i + 1] for x in (latents, data, time, following))
        alone = transition.gaussian(*each)
        torch.testing.assert_close(mean[i : i + 1], alone[0])
        torch.testing.assert_close(std[i : i + 1], alone[1])
