"""Solvers of the probability-flow ODE, with a time of its own for every image.

Along a path, latents at time t are x = alpha D + sigma E: data D and noise E. With lambda = log(alpha / sigma), a step
from s to t that holds the data still is exact (Lu et al. 2022, "DPM-Solver++", eq. 9):

    x_t = sigma_t / sigma_s x_s - alpha_t expm1(lambda_s - lambda_t) D

The solvers differ in the D they put there. Times are (N,) float64, latents and network outputs (N, ...) float32.

`sample` takes them along a grid of noise levels for any denoiser D(x; sigma): EDM's variables, in which alpha is 1.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

MIN_STEP = 0.01
"""Least change of the time in a decision, as in AdaGen."""

MIN_LOG_SNR_STEP = 0.01
"""Least change of lambda that a second-order term is divided by."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisePath(ABC):
    """How data turn into noise, and what the network says of it.

    Attributes:
        noise_time, data_time: where latents are pure noise, and the time nearest to the data that is gone to.
        min_step: least change of the time in a decision.
    """

    noise_time: float
    data_time: float
    min_step: float = MIN_STEP

    @abstractmethod
    def log_alpha(self, time: Tensor) -> Tensor:
        """Returns log alpha."""

    @abstractmethod
    def sigma(self, time: Tensor) -> Tensor:
        """Returns sigma."""

    @abstractmethod
    def output(self, data: Tensor, noise: Tensor) -> Tensor:
        """Returns what the network is to say of latents made of data D and noise E."""

    @abstractmethod
    def noise(self, latents: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """Returns the noise E that a network output stands for."""

    @abstractmethod
    def data(self, latents: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """Returns the data D that a network output stands for."""

    @abstractmethod
    def time_of(self, level: Tensor) -> Tensor:
        """Returns the time of a noise level, the inverse of `noise_level`; 0 is the data."""

    def alpha(self, time: Tensor) -> Tensor:
        """Returns alpha."""
        return self.log_alpha(time).exp()

    def noise_level(self, time: Tensor) -> Tensor:
        """Returns sigma / alpha, the noise beside data of their own scale: EDM's sigma (Karras et al. 2022)."""
        return self.sigma(time) / self.alpha(time)

    def log_snr(self, time: Tensor) -> Tensor:
        """Returns lambda = log(alpha / sigma), half the logarithm of the signal-to-noise ratio."""
        return self.log_alpha(time) - self.sigma(time).log()

    def limit(self, time: Tensor, current: Tensor | None = None) -> Tensor:
        """Returns the time brought between pure noise and `data_time`, and at least `min_step` past the current one."""
        sign = 1.0 if self.data_time > self.noise_time else -1.0
        progress = (sign * time).clamp(
            min=sign * self.noise_time + 1e-6
        )  # lambda may be infinite at pure noise
        if current is not None:
            progress = progress.maximum(sign * current + self.min_step)
        return sign * progress.clamp(max=sign * self.data_time)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisePredicting(NoisePath):
    """A path whose network says the noise E."""

    def output(self, data: Tensor, noise: Tensor) -> Tensor:
        """Returns E."""
        return noise

    def noise(self, latents: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """Returns the output."""
        return output

    def data(self, latents: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """Returns (x - sigma E) / alpha."""
        return (latents - per_image(self.sigma(time), latents) * output) / per_image(
            self.alpha(time), latents
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariancePreserving(NoisePredicting):
    """A path with alpha^2 + sigma^2 = 1."""

    def sigma(self, time: Tensor) -> Tensor:
        """Returns sqrt(1 - alpha^2)."""
        return (-torch.expm1(2 * self.log_alpha(time))).sqrt()


@dataclasses.dataclass(frozen=True, kw_only=True)
class VPLinear(VariancePreserving):
    """The variance-preserving path with linear beta (Song et al. 2021, eq. 33).

    Time runs down: 1 is noise, 0 data.
    """

    beta_0: float = 0.1
    beta_1: float = 20.0
    noise_time: float = 1.0
    data_time: float = 0.01

    def log_alpha(self, time: Tensor) -> Tensor:
        """Returns -(beta_1 - beta_0) t^2 / 4 - beta_0 t / 2."""
        return -(self.beta_1 - self.beta_0) * time**2 / 4 - self.beta_0 * time / 2

    def time_of(self, level: Tensor) -> Tensor:
        """Returns the root of (beta_1 - beta_0) t^2 / 2 + beta_0 t = log(1 + level^2), without cancellation."""
        log_variance = (level**2).log1p()
        root = (self.beta_0**2 + 2 * (self.beta_1 - self.beta_0) * log_variance).sqrt()
        return 2 * log_variance / (self.beta_0 + root)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VPTable(VariancePreserving):
    """A variance-preserving path that is known at numbered steps (Ho et al. 2020).

    Times are steps, 0 the nearest to the data; between two of them log(sigma / alpha) is linear.

    Attributes:
        levels: (S,) float64, sigma / alpha at each step.
    """

    levels: Tensor
    data_time: float = 0.0

    @classmethod
    def of(cls, alphas_cumprod: Tensor) -> VPTable:
        """Returns the path of alpha^2 (S,) float64 at each step, falling."""
        return cls(levels=(1 / alphas_cumprod - 1).sqrt(), noise_time=len(alphas_cumprod) - 1.0)

    def noise_level(self, time: Tensor) -> Tensor:
        """Returns sigma / alpha."""
        logs = self.levels.log().to(time.device)
        lower = time.detach().floor().long().clamp(0, len(logs) - 2)
        return torch.lerp(logs[lower], logs[lower + 1], time - lower).exp()

    def time_of(self, level: Tensor) -> Tensor:
        """Returns the time of a noise level within those of the steps, and the nearest step's of another."""
        logs, wanted = self.levels.log().to(level.device), level.log()
        upper = torch.searchsorted(logs, wanted.detach()).clamp(1, len(logs) - 1)
        share = (wanted - logs[upper - 1]) / (logs[upper] - logs[upper - 1])
        return upper - 1 + share.clamp(0, 1)

    def log_alpha(self, time: Tensor) -> Tensor:
        """Returns -log(1 + (sigma / alpha)^2) / 2."""
        return -self.noise_level(time).square().log1p() / 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearPath(NoisePath):
    """The straight path x = t D + (1 - t) E (Lipman et al. 2023; SiT); the network predicts the velocity D - E.

    Time runs up: 0 is noise, 1 data.
    """

    noise_time: float = 0.0
    data_time: float = 0.99

    def log_alpha(self, time: Tensor) -> Tensor:
        """Returns log t."""
        return time.log()

    def sigma(self, time: Tensor) -> Tensor:
        """Returns 1 - t."""
        return 1 - time

    def time_of(self, level: Tensor) -> Tensor:
        """Returns 1 / (1 + level)."""
        return 1 / (1 + level)

    def output(self, data: Tensor, noise: Tensor) -> Tensor:
        """Returns D - E."""
        return data - noise

    def noise(self, latents: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """Returns x - t v."""
        return latents - per_image(time, latents) * output

    def data(self, latents: Tensor, time: Tensor, output: Tensor) -> Tensor:
        """Returns x + (1 - t) v."""
        return latents + per_image(1 - time, latents) * output


@dataclasses.dataclass(frozen=True, kw_only=True)
class VarianceExploding(NoisePredicting):
    """The path x = D + sigma E whose time is sigma (Karras et al. 2022); the output is its slope dx/dsigma, the noise.

    Time runs down: 0 is data.
    """

    noise_time: float = 80.0
    data_time: float = 0.0

    def log_alpha(self, time: Tensor) -> Tensor:
        """Returns 0."""
        return torch.zeros_like(time)

    def sigma(self, time: Tensor) -> Tensor:
        """Returns the time."""
        return time

    def time_of(self, level: Tensor) -> Tensor:
        """Returns the level."""
        return level


Denoiser = Callable[[Tensor, Tensor], Tensor]
"""D(x; sigma): the data (N, ...) expected behind x = data + sigma noise (N, ...), with sigma (N,) float64."""


@dataclasses.dataclass(frozen=True)
class PathDenoiser:
    """D(x; sigma) of a network on a path, whose latents are alpha x (Karras et al. 2022, app. C).

    Attributes:
        path: what the network was trained on.
        network: (latents (N, ...), times (N,) of the path) -> output (N, ...), guided where that is wanted.
    """

    path: NoisePath
    network: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Returns the data (N, ...) expected behind x (N, ...) at noise levels (N,) float64."""
        time = self.path.time_of(sigma)
        latents = per_image(self.path.alpha(time), x) * x
        return self.path.data(latents, time, self.network(latents, time))


def reverse_flow(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    """Returns F = (D(x; sigma) - x) / sigma (N, ...), the slope of the flow towards the data: -dx/dsigma.

    Args:
        denoiser: D.
        x: (N, ...).
        sigma: (N,) float64, above 0.
    """
    return (denoiser(x, sigma) - x) / per_image(sigma, x)


def directional_derivative(
    function: Callable[..., Tensor], at: tuple[Tensor, ...], direction: tuple[Tensor, ...]
) -> Tensor:
    """Returns the Jacobian of a function times a direction, one product in forward mode, as large as its value."""
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):  # other attention has no forward mode
        warnings.filterwarnings("ignore", "`torch.jit.script`")  # which torch loads this mode with
        # An expanded tensor cannot carry a tangent.
        point, tangent = (tuple(x.contiguous() for x in tensors) for tensors in (at, direction))
        return torch.func.jvp(function, point, tangent)[1]


def flow_acceleration(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, flow: Tensor, difference: float | None = None
) -> Tensor:
    """Returns Q (N, ...), the change of F along the flow per unit of falling sigma, (dF/dx) F - dF/dsigma.

    An Euler step of length h errs by h^2 Q / 2 (ART, arXiv 2601.18681, eq. 8).

    Args:
        denoiser: D.
        x: (N, ...).
        sigma: (N,) float64, above 0.
        flow: F there, as of `reverse_flow`.
        difference: None for one Jacobian-vector product in forward mode, exact, with attention's math backend, which
            alone has one. A number d for central differences of step d sigma, two evaluations more, for networks
            without forward mode; they smooth whatever is finer than the step.

    Raises:
        ValueError: if `difference` does not lie between 0 and 1.
    """

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        return reverse_flow(denoiser, x, sigma)

    if difference is None:
        return directional_derivative(slope, (x, sigma), (flow, torch.full_like(sigma, -1)))
    if not 0 < difference < 1:
        raise ValueError(f"difference must lie between 0 and 1, got {difference}")
    step = difference * sigma
    move = per_image(step, x) * flow
    return (slope(x + move, sigma - step) - slope(x - move, sigma + step)) / per_image(2 * step, x)


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What the network said somewhere on the way."""

    latents: Tensor  # (N, ...)
    time: Tensor  # (N,)
    output: Tensor  # (N, ...), guided


Step = Callable[[NoisePath, Evaluation, Evaluation | None, Tensor], tuple[Tensor, Evaluation | None]]
"""(path, the evaluation at hand, the remembered one, time to go to) -> latents there, what to remember."""


def per_image(coefficient: Tensor, latents: Tensor) -> Tensor:
    """Returns a coefficient (N,) in the type of the latents (N, ...), ready to multiply them."""
    return coefficient.to(latents.dtype).view(-1, *[1] * (latents.ndim - 1))


def _data(path: NoisePath, at: Evaluation) -> Tensor:
    return path.data(at.latents, at.time, at.output)


def _advance(path: NoisePath, start: Evaluation, time: Tensor, data: Tensor) -> Tensor:
    """Returns the latents at `time`, having held the data still."""
    decay = path.sigma(time) / path.sigma(start.time)
    gain = -path.alpha(time) * torch.expm1(path.log_snr(start.time) - path.log_snr(time))
    return per_image(decay, data) * start.latents + per_image(gain, data) * data


def _extrapolated(
    path: NoisePath, first: Evaluation, second: Evaluation, base: Tensor, step: Tensor
) -> Tensor:
    """Returns data `base` moved on, by half a step of lambda (N,), along the line through two evaluations."""
    between = path.log_snr(second.time) - path.log_snr(first.time)
    slope = 0.5 * step / between.clamp(min=MIN_LOG_SNR_STEP)
    return base + per_image(slope, base) * (_data(path, second) - _data(path, first))


def euler(path: NoisePath, now: Evaluation, before: Evaluation | None, time: Tensor) -> tuple[Tensor, None]:
    """First order: DDIM (Song et al. 2021, eq. 12) on the diffusion path, Euler's rule on the straight one."""
    return _advance(path, now, time, _data(path, now)), None


def heun(
    path: NoisePath, now: Evaluation, before: Evaluation | None, time: Tensor
) -> tuple[Tensor, Evaluation | None]:
    """Second order: Euler's step again with the mean output of its two ends (Karras et al. 2022, algorithm 1)."""
    if before is None:
        return euler(path, now, None, time)[0], now
    mean = dataclasses.replace(before, output=(before.output + now.output) / 2)
    return euler(path, mean, None, time)


def dpm2s(
    path: NoisePath, now: Evaluation, before: Evaluation | None, time: Tensor
) -> tuple[Tensor, Evaluation | None]:
    """Second order from a point in between: DPM-Solver++(2S) (Lu et al. 2022, algorithm 1), as in AdaGen."""
    if before is None:
        return euler(path, now, None, time)[0], now
    step = path.log_snr(time) - path.log_snr(before.time)
    return _advance(path, before, time, _extrapolated(path, before, now, _data(path, before), step)), None


def dpmpp2m(
    path: NoisePath, now: Evaluation, before: Evaluation | None, time: Tensor
) -> tuple[Tensor, Evaluation | None]:
    """Second order from the evaluation before: DPM-Solver++(2M) (Lu et al. 2022, algorithm 2)."""
    data = _data(path, now)
    if before is not None:
        step = path.log_snr(time) - path.log_snr(now.time)
        data = _extrapolated(path, before, now, data, step)
    return _advance(path, now, time, data), now


@dataclasses.dataclass(frozen=True)
class Solver:
    """A rule that turns network outputs into steps.

    Attributes:
        step: takes one evaluation.
        per_update: solver evaluations until the latents are on the solution again.
        per_decision: solver evaluations on the way to a chosen time.
    """

    step: Step
    per_update: int = 1
    per_decision: int = 1


SOLVERS = {
    "dpm2s": Solver(dpm2s, per_update=2),
    "euler": Solver(euler),
    "heun": Solver(heun, per_update=2, per_decision=2),
    "dpmpp2m": Solver(dpmpp2m),
}


EVALUATIONS = {"euler": 1, "heun": 2, "rk4": 4, "dpmpp2m": 1}
"""The solvers of `sample` -> evaluations of a step; the last one, to the noise level 0, is always Euler's, with one."""


def evaluations(solver: str, steps: int) -> int:
    """Returns how often a solver asks the denoiser on a grid of `steps` steps: its NFE.

    Raises:
        ValueError: if it takes no grid, or there are no steps.
    """
    if solver not in EVALUATIONS:
        raise ValueError(f"solver of a grid must be one of {', '.join(EVALUATIONS)}, got {solver!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    return EVALUATIONS[solver] * (steps - 1) + 1


def noise_levels(levels: Tensor | Sequence[float]) -> Tensor:
    """Returns a grid (K+1,) as float64.

    Raises:
        ValueError: if it is not K+1 >= 2 finite numbers that fall, the last of them 0.
    """
    grid = torch.as_tensor(levels, dtype=torch.float64)
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid must be a list of at least 2 noise levels, got {grid.tolist()}")
    if not bool(grid.isfinite().all()) or grid[-1] != 0:
        raise ValueError(f"a grid must hold finite noise levels and end at 0, got {grid.tolist()}")
    rising = (grid.diff() >= 0).nonzero()
    if len(rising):
        k = int(rising[0])
        raise ValueError(f"a grid must fall, got {grid[k]:g} before {grid[k + 1]:g} at step {k}")
    return grid


def sample(
    denoiser: Denoiser, x: Tensor, levels: Tensor | Sequence[float], solver: str = "heun"
) -> tuple[Tensor, int]:
    """Returns the data that the probability-flow ODE leads to, and the evaluations spent on each (Karras et al. 2022).

    `euler`, `heun` (algorithm 1) and `dpmpp2m` (Lu et al. 2022) are the rules of the environments on this path, `rk4`
    is the classical Runge-Kutta rule. With K steps they cost K, 2K - 1, K and 4K - 3 evaluations.

    Args:
        denoiser: D(x; sigma).
        x: (N, ...) at the first noise level: that many times standard normal noise, if the level is high.
        levels: (K+1,) noise levels that fall, the last 0.
        solver: "euler", "heun", "rk4" or "dpmpp2m".

    Raises:
        ValueError: if the solver takes no grid, the grid does not fall to 0, or the denoiser says what is not finite.
    """
    grid = noise_levels(levels)
    total = evaluations(solver, len(grid) - 1)
    path, memory, finite = VarianceExploding(), None, []

    def slope(x: Tensor, sigma: Tensor) -> Tensor:
        data = denoiser(x, sigma)
        finite.append(data.isfinite().all())
        return (x - data) / per_image(sigma, x)

    for start, end in itertools.pairwise(grid.to(x.device)):
        now, then = start.expand(len(x)), end.expand(len(x))
        last = len(finite) == total - 1
        if solver == "rk4" and not last:
            x = _rk4(slope, x, now, then)
            continue
        rule = SOLVERS["euler" if last else solver]
        for _ in range(rule.per_decision):
            x, memory = rule.step(path, Evaluation(x, now, slope(x, now)), memory, then)
            now = then
    _check_finite(finite, grid, EVALUATIONS[solver])
    return x, len(finite)


def _rk4(slope: Callable[[Tensor, Tensor], Tensor], x: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Returns x (N, ...) at times `end` (N,): one step of the classical Runge-Kutta rule, of fourth order."""
    step, middle = per_image(end - start, x), (start + end) / 2
    first = slope(x, start)
    second = slope(x + step / 2 * first, middle)
    third = slope(x + step / 2 * second, middle)
    fourth = slope(x + step * third, end)
    return x + step / 6 * (first + 2 * second + 2 * third + fourth)


def _check_finite(finite: Sequence[Tensor], grid: Tensor, per_step: int) -> None:
    """Raises a ValueError if an evaluation was not finite; asks once, since a device would wait for each answer."""
    wrong = (~torch.stack(list(finite))).nonzero()
    if len(wrong):
        k = int(wrong[0]) // per_step
        raise ValueError(
            f"the denoiser said what is not finite in step {k}, from noise level {grid[k]:g} to {grid[k + 1]:g}; "
            "is the first level within what it was trained on?"
        )
