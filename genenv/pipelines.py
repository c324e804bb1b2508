"""Pipelines of diffusers as generators: Stable Diffusion from prompts, DiT from labels.

A folder is what `save_pretrained` of diffusers' StableDiffusionPipeline and DiTPipeline writes: model_index.json, and a
folder for each part. Of it safetensors, JSON and the tokenizer's merges are read, and nothing of it runs. The safety
checker is left alone.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genenv.checkpoints import load_state, read_state_dict
from genenv.conditions import Condition, Embeddings, Labels
from genenv.json_text import read_object
from genenv.models.autoencoder_kl import LATENT_SCALE
from genenv.models.clip import (
    END_OF_TEXT,
    TEXT_TOWER,
    Tokenizer,
    are_positions,
    known_entries,
    number_positions,
)
from genenv.models.pretrained import (
    COUNT,
    check_entries,
    check_types,
    from_folder,
    in_one_line,
    is_count,
    is_number,
)
from genenv.solvers import VPTable, per_image

INDEX = "model_index.json"
NETWORKS = {
    "unet": ("UNet2DConditionModel",),
    "transformer": ("DiTTransformer2DModel", "Transformer2DModel"),  # the older name is in published files
}
"""Folder of the network that is steered -> the classes that it may be of."""
CONDITIONS = {"unet": "encoder_hidden_states", "transformer": "class_labels"}
"""Folder of the network -> the argument that takes its condition."""
FURTHER_INPUTS = ("addition_embed_type", "class_embed_type", "encoder_hid_dim_type", "num_class_embeds")
"""Entries of a UNet's configuration that ask for more than prompts, as Stable Diffusion XL does."""
SCHEDULE = (
    "beta_end",
    "beta_schedule",
    "beta_start",
    "num_train_timesteps",
    "prediction_type",
    "set_alpha_to_one",
    "steps_offset",
    "timestep_spacing",
    "trained_betas",
)
"""What is taken of a scheduler's configuration, whatever scheduler it is."""
SPACINGS = ("leading", "trailing", "linspace")
CHUNK_SIZE = 64
"""Prompts that are embedded at once."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a pipeline's folder says of itself.

    Attributes:
        part: folder of the network: "unet" takes prompts, "transformer" labels.
        latent_shape: (C, h, w).
        image_shape: (C', H, W).
        labels: what each label shows; none where there are prompts.
        named: whether that is said, rather than the labels' numbers.
    """

    part: str
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    labels: tuple[str, ...]
    named: bool


def read_layout(folder: Path) -> Layout | None:
    """Returns what a folder says of itself, None if it holds no pipeline of the kinds above.

    Raises:
        ValueError: if it is one, but a file cannot be read or says what cannot be meant, naming file and entry.
    """
    if not (folder / INDEX).is_file():
        return None
    index = read_object(folder / INDEX)
    for part, classes in NETWORKS.items():
        entry = index.get(part)  # such as ["diffusers", "UNet2DConditionModel"]
        if isinstance(entry, list) and len(entry) == 2 and entry[1] in classes:
            return _layout(folder, part, index.get("id2label"))
    return None


def _layout(folder: Path, part: str, names: Any) -> Layout:
    config = _network_config(folder / part / "config.json", part)
    channels, size = config["in_channels"], config["sample_size"]
    height, width = size if isinstance(size, list) else (size, size)
    vae = _vae_config(folder / "vae" / "config.json", channels)
    factor = 2 ** (len(vae["block_out_channels"]) - 1)
    return Layout(
        part,
        (channels, height, width),
        (vae["out_channels"], height * factor, width * factor),
        () if part == "unet" else _labels(names, config["num_embeds_ada_norm"], folder / INDEX),
        names is not None,
    )


def _network_config(path: Path, part: str) -> dict[str, Any]:
    config, classes = _config(path), NETWORKS[part]
    size, channels, outputs, labels = (
        config.get(name) for name in ("sample_size", "in_channels", "out_channels", "num_embeds_ada_norm")
    )
    sides = size if part == "unet" and isinstance(size, list) and len(size) == 2 else [size]
    known = outputs == channels or (part == "transformer" and outputs in (None, 2 * (channels or 0)))
    check_entries(
        config,
        path,
        ("_class_name", " or ".join(classes), config.get("_class_name") in classes),
        ("sample_size", COUNT, all(map(is_count, sides))),
        ("in_channels", COUNT, is_count(channels)),
        ("out_channels", "as many as in_channels, or twice with a variance", known),
        ("num_embeds_ada_norm", COUNT, part == "unet" or is_count(labels)),
        *((name, "left out for a network of prompts alone", not config.get(name)) for name in FURTHER_INPUTS),
    )
    return config


def _vae_config(path: Path, channels: int) -> dict[str, Any]:
    config = _config(path)
    latents, colours, widths, shift = (
        config.get(name) for name in ("latent_channels", "out_channels", "block_out_channels", "shift_factor")
    )
    scale = config.get("scaling_factor", LATENT_SCALE)  # Stable Diffusion 1 does not say
    levels = isinstance(widths, list) and len(widths) > 0 and all(map(is_count, widths))
    check_entries(
        config,
        path,
        ("_class_name", "AutoencoderKL", config.get("_class_name") == "AutoencoderKL"),
        ("latent_channels", f"the network's {channels}", latents == channels),
        ("out_channels", "1 or 3", colours in (1, 3)),
        ("block_out_channels", f"a list, each {COUNT}", levels),
        ("scaling_factor", "a number above 0", is_number(scale) and scale > 0),
        ("shift_factor", "null or a number", shift is None or is_number(shift)),
    )
    return config


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; a pipeline's save_pretrained of diffusers writes it")
    return read_object(path)


def _labels(names: Any, number: int, path: Path) -> tuple[str, ...]:
    """Returns what model_index.json calls the labels; their numbers where it names none."""
    if names is None:
        return tuple(map(str, range(number)))
    keys = [str(label) for label in range(number)]
    if not isinstance(names, dict) or not all(isinstance(names.get(key), str) for key in keys):
        raise ValueError(f"{path}: id2label must name each of {number} labels, got {str(names)[:80]}")
    return tuple(names[key] for key in keys)


class NoisePredictor(nn.Module):
    """The noise in noisy latents, by a network of diffusers that is given a condition.

    Like `genenv.models.dit.DiT` it returns hidden states besides: those of a UNet's middle, where it is coarsest, or
    those after the last block of a transformer. It computes in the type of the model's weights.

    Args:
        model: of diffusers, in eval mode; it stays `.model`, where peft and `save_pretrained` find it.
        path: of the latents.
        part: its folder's name, "unet" or "transformer".
        velocity: whether the model says v = alpha E - sigma D (Salimans and Ho 2022) rather than the noise E.
    """

    lora_targets = ("to_q", "to_k", "to_v", "to_out.0")
    """Names of the layers that low-rank changes are made of: attention's, as in DDPO (Black et al. 2024)."""

    def __init__(self, model: Any, path: VPTable, part: str, velocity: bool):
        super().__init__()
        self.model, self.path, self.part, self.velocity = model, path, part, velocity

    @property
    def features_of(self) -> nn.Module | None:
        """The part whose output are the hidden states; None of a UNet without a middle."""
        return self.model.mid_block if self.part == "unet" else self.model.transformer_blocks[-1]

    @property
    def feature_shape(self) -> tuple[int, int]:
        """(L, D) of the hidden states; (0, 1) where there are none."""
        config = self.model.config
        if self.features_of is None:
            return 0, 1
        if self.part == "transformer":
            side = config["sample_size"] // config["patch_size"]
            return side**2, config["num_attention_heads"] * config["attention_head_dim"]
        size, widths = config["sample_size"], config["block_out_channels"]
        coarse = 2 ** (len(widths) - 1)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return -(-height // coarse) * -(-width // coarse), widths[-1]

    def forward(self, latents: Tensor, times: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the noise (M, C, h, w) float32 and the hidden states (M, L, D).

        Args:
            latents: (M, C, h, w).
            times: (M,) of the path.
            condition: embedded prompts (M, S, D), or labels (M,) int64.
        """
        dtype = next(self.model.parameters()).dtype
        if condition.is_floating_point():
            condition = condition.to(dtype)
        inside, hidden = self.features_of, []
        hook = None if inside is None else inside.register_forward_hook(lambda _, __, out: hidden.append(out))
        try:
            said = self.model(
                latents.to(dtype), timestep=times.float(), **{CONDITIONS[self.part]: condition}
            ).sample
        finally:
            if hook is not None:
                hook.remove()
        output = said[:, : latents.shape[1]].float()  # a variance may follow
        if self.velocity:
            alpha, sigma = self.path.alpha(times.double()), self.path.sigma(times.double())
            output = per_image(alpha, output) * output + per_image(sigma, output) * latents.float()
        if not hidden:
            return output, output.new_zeros(len(latents), 0, 1)
        states = hidden[0]
        return output, states.flatten(2).transpose(1, 2) if states.ndim == 4 else states


@dataclasses.dataclass(frozen=True)
class Decoder:
    """Latents to images, one by one: an autoencoder of large images takes far more memory than the generator.

    Attributes:
        vae: an `AutoencoderKL` of diffusers.
    """

    vae: Any

    def __call__(self, latents: Tensor) -> Tensor:
        """Returns images (N, C', H, W) float32 in [0, 1] of latents (N, C, h, w), in the autoencoder's type between."""
        config, dtype = self.vae.config, next(self.vae.parameters()).dtype
        unscaled = latents / config["scaling_factor"] + (config.get("shift_factor") or 0.0)
        images = torch.cat([self.vae.decode(each).sample for each in unscaled.to(dtype).split(1)])
        return ((images.float() + 1) / 2).clamp(0, 1)


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A generator from a folder of diffusers.

    Attributes:
        network: (latents (M, C, h, w), times (M,), condition rows) -> noise (M, C, h, w), features (M, L, D).
        path: its noise levels, at the steps that it was trained at.
        condition: of the prompts or the labels; without one, of the empty prompt or the null label.
        decoder: latents (N, C, h, w) -> images (N, C', H, W) in [0, 1].
        latent_shape: (C, h, w).
        image_shape: (C', H, W).
        context_names: the prompts, or what the labels show.
        scheduler: diffusers' DDIM by the folder's configuration.
    """

    network: NoisePredictor
    path: VPTable
    condition: Condition
    decoder: Decoder
    latent_shape: tuple[int, int, int]
    image_shape: tuple[int, int, int]
    context_names: tuple[str, ...]
    scheduler: Any

    @property
    def ends_at_data(self) -> bool:
        """Whether DDIM's last step leads to the data themselves, rather than to the path's time 0, next to them."""
        return self.scheduler.config["set_alpha_to_one"]

    def times(self, num_steps: int) -> Tensor:
        """Returns the times (num_steps,) float64, falling, at which DDIM asks the network by the folder's settings.

        Raises:
            ValueError: if the network knows not as many steps.
        """
        most = len(self.path.levels)
        if not 1 <= num_steps <= most:
            raise ValueError(f"num_steps must lie in 1..{most}, got {num_steps}")
        self.scheduler.set_timesteps(num_steps)
        times = self.scheduler.timesteps.double()
        if times[0] >= most:  # the folder's steps_offset leads beyond
            raise ValueError(
                f"num_steps must be such that its first time lies in 0..{most - 1}, got {num_steps}"
            )
        return times


def load_pipeline(
    folder: str,
    prompts: Sequence[str] | None = None,
    dtype: torch.dtype = torch.float32,
    trainable: bool = False,
    device: torch.device | str = "cpu",
) -> Pipeline:
    """Returns the generator of a folder that diffusers wrote, in eval mode.

    The text encoder is asked once, about all prompts, and let go; it and the autoencoder are in float32.

    Args:
        folder: of a `StableDiffusionPipeline` or a `DiTPipeline`.
        prompts: what there is to show, for a network of prompts; None for one of labels. Longer texts than the
            encoder takes are cut, as the pipeline does.
        dtype: of the network.
        trainable: whether its parameters require gradients.
        device: where the parts are.

    Raises:
        ImportError: without diffusers or transformers.
        ValueError: if the folder holds no such pipeline, a file is missing or damaged or says what cannot be meant
            (naming it), or prompts are missing or not wanted.
    """
    try:
        diffusers: Any = importlib.import_module("diffusers")
    except ImportError:
        raise ImportError("a pipeline needs diffusers: pip install 'genenv[diffusers]'") from None
    root = Path(folder).expanduser()
    layout = read_layout(root)
    if layout is None:
        classes = " or ".join(names[0] for names in NETWORKS.values())
        raise ValueError(f"{folder} must hold the {INDEX} of a pipeline with a {classes}")
    takes_prompts = layout.part == "unet"
    if not (_are_texts(prompts) if takes_prompts else prompts is None):
        rule = "a list of texts" if takes_prompts else "left out for a network of labels"
        raise ValueError(f"prompts must be {rule}, got {prompts!r}; the generator is {folder}")
    scheduler, velocity = _scheduler(root / "scheduler" / "scheduler_config.json")
    path = VPTable.of(scheduler.alphas_cumprod.double())
    kind = getattr(diffusers, NETWORKS[layout.part][0])
    model = _network(kind, root / layout.part, dtype).requires_grad_(trainable).to(device)
    vae = _network(diffusers.AutoencoderKL, root / "vae", torch.float32).requires_grad_(False).to(device)
    if prompts is None:
        condition: Condition = Labels(len(layout.labels))
    else:
        condition = _embedded(root, list(prompts), device)
        _check_width(condition.empty, model, root)
    return Pipeline(
        NoisePredictor(model, path, layout.part, velocity).eval(),
        path,
        condition,
        Decoder(vae),
        layout.latent_shape,
        layout.image_shape,
        layout.labels if prompts is None else tuple(prompts),
        scheduler,
    )


def _are_texts(prompts: Any) -> bool:
    several = isinstance(prompts, Sequence) and not isinstance(prompts, str) and len(prompts) > 0
    return several and all(isinstance(prompt, str) for prompt in prompts)


def _network(kind: Any, folder: Path, dtype: torch.dtype) -> Any:
    check_types(kind, folder / "config.json")
    try:
        return from_folder(kind, folder, None, dtype)
    except Exception as error:  # what its constructor does not check
        raise ValueError(
            f"{folder} must hold config.json and diffusion_pytorch_model.safetensors of a {kind.__name__}: "
            f"{in_one_line(error)}"
        ) from None


def _scheduler(path: Path) -> tuple[Any, bool]:
    """Returns diffusers' DDIM by a scheduler's configuration, and whether the network says the velocity."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    config = _config(path)
    check_types(DDIMScheduler, path)
    said = config.get("prediction_type", "epsilon")
    betas, steps = config.get("trained_betas"), config.get("num_train_timesteps", 1000)
    offset = config.get("steps_offset", 0)
    known = betas is None or (isinstance(betas, list) and all(map(is_number, betas)))
    check_entries(
        config,
        path,
        ("prediction_type", "'epsilon' or 'v_prediction'", said in ("epsilon", "v_prediction")),
        ("num_train_timesteps", f"{COUNT}, and more than 1", is_count(steps) and steps > 1),
        ("steps_offset", "a whole number of at least 0", type(offset) is int and offset >= 0),
        ("timestep_spacing", " or ".join(SPACINGS), config.get("timestep_spacing", SPACINGS[0]) in SPACINGS),
        ("trained_betas", "null or a list of numbers", known),
        # Flow matching has none: its paths are others.
        ("beta_schedule", "that of a diffusion", "beta_schedule" in config or betas is not None),
        (
            "rescale_betas_zero_snr",
            "false: no step may be pure noise",
            not config.get("rescale_betas_zero_snr"),
        ),
    )
    try:
        scheduler: Any = DDIMScheduler.from_config({k: v for k, v in config.items() if k in SCHEDULE})
    except Exception as error:  # its constructor checks little of what it is given
        raise ValueError(f"{path} must be the configuration of a scheduler: {in_one_line(error)}") from None
    signal = scheduler.alphas_cumprod
    if not bool(((signal > 0) & (signal < 1)).all() and (signal.diff() < 0).all()):
        raise ValueError(f"{path}: the betas must lie in (0, 1) and leave some of the data")
    return scheduler, said == "v_prediction"


@torch.no_grad()
def _embedded(root: Path, prompts: list[str], device: torch.device | str) -> Embeddings:
    """Returns the text encoder's last states (P, S, D) of the prompts and of the empty one."""
    encoder, positions = _text_encoder(root / "text_encoder")
    tokenizer = _tokenizer(root / "tokenizer", positions)
    encoder.to(device)
    texts = ["", *prompts]
    chunks = [tokenizer(texts[i : i + CHUNK_SIZE])[0] for i in range(0, len(texts), CHUNK_SIZE)]
    highest, words = max(int(chunk.max()) for chunk in chunks), encoder.config.vocab_size
    if highest >= words:
        raise ValueError(f"{root / 'tokenizer'} has a token {highest}, the text encoder knows {words}")
    # No mask: the pipeline shows the padding too.
    states = torch.cat([encoder(chunk.to(device)).last_hidden_state for chunk in chunks])
    return Embeddings(states[1:], states[0])


def _text_encoder(folder: Path) -> tuple[Any, int]:
    """Returns the text encoder of a folder, and how many tokens it takes.

    The library sees numbers of the folder's files alone: no code that they name runs, and nothing is downloaded.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError:
        raise ImportError("prompts need transformers: pip install 'genenv[diffusers]'") from None
    path, weights = folder / "config.json", folder / "model.safetensors"
    config = _config(path)
    architectures = config.get("architectures", ["CLIPTextModel"])
    check_entries(config, path, ("architectures", "['CLIPTextModel']", architectures == ["CLIPTextModel"]))
    if not weights.is_file():
        raise ValueError(f"{weights} is missing; CLIPTextModel.save_pretrained of transformers writes it")
    try:
        known: Any = CLIPTextConfig(**known_entries(TEXT_TOWER, config))
        with torch.device("meta"):
            encoder = CLIPTextModel(known)
    except Exception as error:  # transformers has many types
        raise ValueError(
            f"{path} must be the configuration of a CLIPTextModel: {in_one_line(error)}"
        ) from None
    # Files name the parts below "text_model", as the class did before transformers 5.
    prefix = "text_model." if any(name.startswith("text_model.") for name in encoder.state_dict()) else ""
    tensors = {
        prefix + name.removeprefix("text_model."): value.float()
        for name, value in read_state_dict(weights).items()
        if not are_positions(name)
    }
    load_state(encoder, tensors, weights)
    number_positions(encoder)
    return encoder.eval().requires_grad_(False), known.max_position_embeddings


def _tokenizer(folder: Path, positions: int) -> Tokenizer:
    """Returns the tokenizer of a folder, which pads all texts to the length of its model, at most `positions`."""
    path = folder / "tokenizer_config.json"
    config = _config(path)
    special = folder / "special_tokens_map.json"
    # Older files say it twice, and the other one counts: Stable Diffusion 2 pads with "!".
    older = read_object(special) if special.is_file() and "added_tokens_decoder" not in config else {}
    padding = older.get("pad_token", config.get("pad_token", END_OF_TEXT))
    padding: Any = padding.get("content") if isinstance(padding, dict) else padding
    length = config.get("model_max_length", positions)
    check_entries(
        config,
        path,
        ("pad_token", "a text", isinstance(padding, str)),
        (
            "model_max_length",
            f"at most the {positions} of the text encoder",
            is_count(length) and length <= positions,
        ),
    )
    whole = folder / "tokenizer.json"
    try:
        return Tokenizer(whole if whole.is_file() else folder, length, full=True, padding=padding)
    except Exception as error:  # the library has a type of its own
        raise ValueError(
            f"{folder} must hold the tokenizer.json, or the vocab.json and merges.txt, of a CLIP: {in_one_line(error)}"
        ) from None


def _check_width(states: Tensor, model: Any, root: Path) -> None:
    wanted, found = model.config["cross_attention_dim"], states.shape[-1]
    if wanted != found:
        raise ValueError(
            f"{root / 'unet' / 'config.json'}: cross_attention_dim must be the text encoder's {found}, got {wanted!r}"
        )
