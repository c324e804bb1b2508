"""Reference vectors of DiT and SiT: the networks, AdaGen's loop and its solver, and the KL autoencoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from genenv.conditions import Labels
from genenv.envs import diffusion, flow
from genenv.envs.ode import ODESampler, ODEState
from genenv.models.autoencoder_kl import LATENT_SCALE, AutoencoderKL
from genenv.models.dit import DiT
from genenv.models.transformer import sinusoids
from genenv.parity.fixture import Fixture, Record, Result, close
from genenv.rng import BatchRng
from genenv.schedules import ScheduleParam
from genenv.solvers import SOLVERS, Evaluation, LinearPath, NoisePath, VPLinear, dpm2s

GUIDED_CHANNELS = 3
"""Guidance leaves the fourth channel alone."""


def transformer(fixture: Fixture) -> DiT:
    """Returns the reference's transformer."""
    shape = fixture.config["constructor"]
    model = DiT(
        input_size=shape["input_size"],
        patch_size=shape["patch_size"],
        in_channels=shape["in_channels"],
        embed_dim=shape["hidden_size"],
        depth=shape["depth"],
        num_heads=shape["num_heads"],
        mlp_ratio=shape["mlp_ratio"],
        num_classes=shape["num_classes"],
        learn_sigma=shape["learn_sigma"],
    )
    return fixture.load(model)


def autoencoder(fixture: Fixture) -> AutoencoderKL:
    """Returns the reference's autoencoder."""
    shape = fixture.config["constructor"]["ddconfig"]
    model = AutoencoderKL(shape["ch"], shape["ch_mult"], shape["num_res_blocks"], shape["z_channels"])
    return fixture.load(model)


def sampler(fixture: Fixture, path: NoisePath, params: tuple[ScheduleParam, ...]) -> ODESampler:
    """Returns the environment's sampler over the reference's networks."""
    network = transformer(fixture)
    decoder = autoencoder(fixture.sibling(fixture.config["generator"]["decoder"]))
    side = network.latent_shape[1] * decoder.downsampling
    return ODESampler(
        network,
        decoder.decode,
        path,
        SOLVERS["dpm2s"],
        params,
        latent_shape=network.latent_shape,
        num_tokens=network.grid_size**2,
        feature_dim=network.embed_dim,
        condition=Labels(network.num_classes),
        image_shape=(3, side, side),
        guided_channels=GUIDED_CHANNELS,
        time_scale=time_scale(path),
        needs_features=True,
    )


def time_scale(path: NoisePath) -> float:
    """Returns the networks' times over the path's."""
    return diffusion.TIME_SCALE if isinstance(path, VPLinear) else 1.0


def guided_noise(env: ODESampler, state: ODEState, weight: Tensor) -> Tensor:
    """Returns the guided noise (N, C, h, w) of the evaluation at hand."""
    assert state.prediction is not None
    return env.path.noise(state.latents, state.time, env.guided(state.prediction, weight))


def check_rollout(env: ODESampler, rollout: Record) -> Iterator[Result]:
    """Every decision of a recorded loop: times, guided noise at regular places, latents after the updates."""
    stride = rollout["z_init"].shape[-1] // rollout["noise"].shape[-1]
    rng = BatchRng(torch.arange(len(rollout["contexts"])))
    state = env.begin(rollout["contexts"], rollout["z_init"])
    for t in range(env.horizon):
        params = {
            "time": rollout["action.timesteps"][t].double(),
            "guidance_weight": rollout["action.manual_cfg"][t].double(),
        }
        if t > 0:
            yield close(f"time, evaluation {t}", state.time, rollout["t_in"][t - 1])
            noise = guided_noise(env, state, params["guidance_weight"])[..., ::stride, ::stride]
            yield close(f"guided noise, evaluation {t}", noise, rollout["noise"][t - 1], 1e-3)
        state = env.advance(state, params, rng)
        if t > 0:
            yield close(f"next time, evaluation {t}", state.time, rollout["t_out"][t - 1])
        if t > 0 and t % 2 == 0:
            recorded = rollout["latents"][t // 2 - 1]
            yield close(f"latents, update {t // 2}", state.latents, recorded, 1e-3)
    if "images_crop" in rollout:
        yield close("final latents", state.latents, rollout["latents_final"], 1e-3)
        images = env.decode(state)
        yield close("images, pooled", F.avg_pool2d(images, 4), rollout["images_pool4"], 1e-3)
        yield close("images, cropped", images[:, :, 16:48, 16:48], rollout["images_crop"], 1e-3)
    else:
        yield close("final latents", state.latents, rollout["final"], 1e-3)


def _check_generator(env: ODESampler, fixture: Fixture) -> Iterator[Result]:
    """Compares the settings and the network's outputs."""
    io, rollout = fixture.tensors("io"), fixture.tensors("rollout")
    yield from fixture.expect(
        {
            "image_size": env.image_shape[1],
            "generator.gen_steps": env.horizon - 1,
            "generator.solver_updates": (env.horizon - 1) // 2,
            "generator.batch": len(rollout["contexts"]),
            "generator.null_class": fixture.config["constructor"]["num_classes"],
        }
    )
    fixture.ignore("constructor.class_dropout_prob", "io_feat_stride")
    output, features = env.network(io["x"], io["t"], io["y"][:, 0])
    yield close("time embedding", sinusoids(io["t"]), io["t_embedding"])
    yield close("output", output, io["out"][:, : output.shape[1]])
    stride = features.shape[1] // io["feat"].shape[1]
    yield close("features", features[:, ::stride], io["feat"])


@torch.no_grad()
def check_dit(fixture: Fixture) -> Iterator[Result]:
    """The network's outputs, then AdaGen's loop and its images."""
    rollout = fixture.tensors("rollout")
    env = sampler(fixture, VPLinear(), diffusion.schedule_params(len(rollout["action.timesteps"])))
    yield from _check_generator(env, fixture)
    yield from check_rollout(env, rollout)


@torch.no_grad()
def check_sit(fixture: Fixture) -> Iterator[Result]:
    """The network's outputs, the noise of a velocity, then AdaGen's loop and its images."""
    io, rollout = fixture.tensors("io"), fixture.tensors("rollout")
    env = sampler(fixture, LinearPath(), flow.schedule_params(len(rollout["action.timesteps"])))
    yield from _check_generator(env, fixture)
    noise = env.path.noise(io["conv_x"], io["conv_t"], io["conv_velocity"])
    yield close("noise of a velocity", noise, io["conv_noise"])
    yield from check_rollout(env, rollout)


@torch.no_grad()
def check_autoencoder_kl(fixture: Fixture) -> Iterator[Result]:
    """The autoencoder's single calls; the reference's pixels are in [-1, 1]."""
    io, model = fixture.tensors("io"), autoencoder(fixture)
    scale, shape = (fixture.config["constructor"][name] for name in ("scale_factor", "ddconfig"))
    yield from fixture.expect(
        {
            "constructor.embed_dim": shape["z_channels"],
            "constructor.ddconfig.double_z": True,
            "constructor.ddconfig.in_channels": model.image_channels,
            "constructor.ddconfig.out_ch": model.image_channels,
            "constructor.ddconfig.attn_resolutions": [],
        }
    )
    fixture.ignore("constructor.ddconfig.resolution", "constructor.ddconfig.dropout")  # any size will do
    yield close("scale of the latents", torch.tensor(LATENT_SCALE), torch.tensor(scale))
    yield close("decoded", model.decode_unclamped(io["latents"]), io["decoded"])
    yield close("moments", model.moments((io["image_in"] + 1) / 2), io["moments"])


@torch.no_grad()
def check_dpm_solver(fixture: Fixture) -> Iterator[Result]:
    """Both paths, single updates from given network outputs, and whole loops with an analytic network."""
    io, recorded = fixture.tensors("io"), fixture.tensors("rollout")
    yield from fixture.expect({"schedules.flow": "alpha=t, sigma=1-t"})
    fixture.ignore("*.inverse_lambda")  # the reference's grid of times, which it does not use
    beta = fixture.config["schedules"]["vp"]
    paths = {"vp": VPLinear(beta_0=beta["beta_0"], beta_1=beta["beta_1"]), "flow": LinearPath()}
    schedules = {"vp": diffusion.schedule_params, "flow": flow.schedule_params}
    for name, path in paths.items():
        grid = io[f"{name}.grid_t"].double()
        quantities = {
            "log_alpha": path.log_alpha,
            "alpha": path.alpha,
            "sigma": path.sigma,
            "lambda": path.log_snr,
        }
        for key, function in quantities.items():
            yield close(f"{name}, {key}", function(grid), io[f"{name}.{key}"])
        yield from _check_update(path, name, io.under(f"{name}."))

        rollout = recorded.under(f"{name}.")
        yield from fixture.expect({"gen_steps": len(rollout["action.timesteps"]) - 1})
        channels, height, width = rollout["z_init"].shape[1:]
        env = ODESampler(
            analytic_network(fixture.config["null_class"]),
            lambda latents: latents,
            path,
            SOLVERS["dpm2s"],
            schedules[name](len(rollout["action.timesteps"])),
            latent_shape=(channels, height, width),
            num_tokens=1,
            feature_dim=1,
            condition=Labels(fixture.config["null_class"]),
            image_shape=(channels, height, width),
            guided_channels=GUIDED_CHANNELS,
            needs_features=True,
        )
        first = path.limit(rollout["action.timesteps"][0].double())
        yield close(f"{name}, first time", first, rollout["first_t"])
        for result in check_rollout(env, rollout):
            yield Result(f"{name}, {result.quantity}", result.max_abs_err, result.tolerance, result.ok)


def _check_update(path: NoisePath, name: str, recorded: Record) -> Iterator[Result]:
    """Compares both halves of single updates, over the largest value of each image.

    Where the first half is tiny, the reference itself is that far from exact arithmetic: a difference that float32
    rounds is multiplied by a hundred, and single entries cancel.
    """
    start, middle, end = (recorded[key].double() for key in ("prev_t", "s1", "t"))
    x = recorded["x"]
    first = Evaluation(x, start, _output(path, x, start, recorded["noise_0"]))
    halfway, memory = dpm2s(path, first, None, middle)
    yield close(f"{name}, first half of an update", halfway, recorded["x_s1"])
    second = Evaluation(halfway, middle, _output(path, halfway, middle, recorded["noise_1"]))
    latents, _ = dpm2s(path, second, memory, end)
    size = recorded["x_t"].abs().amax((1, 2, 3), keepdim=True).clamp(min=1)
    yield close(f"{name}, update over its size", latents / size, recorded["x_t"] / size)


def _output(path: NoisePath, x: Tensor, time: Tensor, noise: Tensor) -> Tensor:
    """Returns the network output that stands for a noise."""
    if isinstance(path, VPLinear):
        return noise
    return ((x - noise) / time.view(-1, 1, 1, 1)).float()


def analytic_network(null_class: int) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Returns the stand-in for a network, f(x, t, y) = sin(2x + y) (0.5 + 0.5 t) + 0.3 y x - 0.2 t."""

    def network(x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        y, t = (labels / null_class).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)
        return torch.sin(2 * x + y) * (0.5 + 0.5 * t) + 0.3 * y * x - 0.2 * t, x.new_zeros(len(x), 1, 1)

    return network
