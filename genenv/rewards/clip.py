"""Fixed scorers that compare an image with its class's prompt: CLIP, HPSv2 and PickScore."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genenv.checkpoints import (
    CheckpointError,
    check_recorded,
    checkpoint_folder,
    load_state,
    locate,
    read_json,
    read_state_dict,
)
from genenv.models.clip import (
    CLIP,
    IMAGE_TOWER,
    TEXT_TOWER,
    Tokenizer,
    are_positions,
    from_open_clip,
    from_transformers,
    known_entries,
    number_positions,
)
from genenv.protocols import Context
from genenv.releases import CLIP_PROCESSOR, CLIP_WEIGHTS, DOWNLOADS
from genenv.tiers import checked_folder, tier_of

HPSV2 = {version: DOWNLOADS[f"hpsv{version}"].file for version in ("2.1", "2.0")}
"""Version -> released file. Their scores are on different scales, and the files fit the same network."""


class PromptScore:
    """Pays scale * cosine(image, prompt of its class). It knows nothing of other images, so it is blind to diversity.

    CLIP score and HPSv2 are the plain cosine, in [-1, 1] (their tables show 100 times it).

    Args:
        name: of the reward.
        encoder: embeds images and texts, such as what `load_clip` and `load_hpsv2` return.
        prompts: one text for each class label, such as `genenv.prompts.prompts` gives.
        scale: multiplies the cosine.
    """

    def __init__(self, name: str, encoder: CLIP, prompts: Sequence[str], scale: float = 1.0):
        self.name, self.encoder, self.scale = name, encoder, scale
        with torch.no_grad():
            self.texts = encoder.encode_texts(prompts)  # (num_classes, D)

    @torch.no_grad()
    def __call__(self, images: Tensor, context: Context) -> Tensor:
        """Returns (N,)."""
        return self.scale * self.encoder.cosines(images, self.texts[context])


def make_clip(backbone: str, device: str, prompts: Sequence[str] | None = None) -> PromptScore:
    """Returns the CLIP score: OpenAI's ViT-L/14 for ImageNet, the digits' own CLIP for digits."""
    return _prompt_score("clip", backbone, device, prompts)


def make_hpsv2(backbone: str, device: str, prompts: Sequence[str] | None = None) -> PromptScore:
    """Returns the human preference score v2.1 (Wu et al. 2023), or the digits' own preference scorer."""
    return _prompt_score("hpsv2", backbone, device, prompts)


def make_hpsv2_0(backbone: str, device: str, prompts: Sequence[str] | None = None) -> PromptScore:
    """Returns the human preference score v2.0, the older weights of HPSv2 on another scale."""
    return _prompt_score("hpsv2.0", backbone, device, prompts)


def make_pickscore(backbone: str, device: str, prompts: Sequence[str] | None = None) -> PromptScore:
    """Returns PickScore (Kirstain et al. 2023), by its authors' definition the cosine times the logit scale."""
    score = _prompt_score("pickscore", backbone, device, prompts)
    score.scale = score.encoder.logit_scale
    return score


def _prompt_score(name: str, backbone: str, device: str, prompts: Sequence[str] | None) -> PromptScore:
    """Returns the cosine with the prompts, by default those of a backbone's tier, by the tier's scorer of that name."""
    tier = tier_of(backbone)
    scorers = tier.need("scorers")
    if name not in scorers:
        raise ValueError(
            f"reward {name!r} has no network for {tier.name}, which backbone {backbone!r} makes; "
            f"use {' or '.join(map(repr, scorers))}"
        )
    texts = tier.prompts() if prompts is None else prompts
    if not texts:
        raise ValueError(
            f"reward {name!r} needs texts, and the tier {tier.name!r} has none: give the environment prompts=[...]"
        )
    return PromptScore(name, scorers[name](backbone).to(device), texts)


def clip_of_folder(backbone: str) -> CLIP:
    """Returns the network in the folder `clip` of a backbone, as transformers saves it."""
    return load_clip(checked_folder(backbone, "clip"))


def hpsv2_of_folder(backbone: str) -> CLIP:
    """Returns the network in the folder `hpsv2` of a backbone, as open_clip and HPSv2 save it."""
    folder = checked_folder(backbone, "hpsv2")
    return load_open_clip(folder, folder / "hpsv2.pt")


def load_clip(
    folder: str | Path, processor: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> CLIP:
    """Returns the CLIP of a folder that transformers' `CLIPModel.save_pretrained` wrote.

    The library sees numbers of the folder's files alone: no code that they name runs, and nothing is downloaded.

    Args:
        folder: holds config.json and model.safetensors.
        processor: holds preprocessor_config.json and tokenizer.json; None for the same folder.
        dtype: what the network computes in; half types want a GPU.

    Raises:
        CheckpointError: if a file is missing or damaged, or the weights are not those of a CLIP.
        ImportError: without transformers.
    """
    try:
        from transformers import CLIPConfig, CLIPModel
    except ImportError:
        raise ImportError("CLIP scorers need transformers: pip install 'genenv[scorers]'") from None
    folder = Path(folder)
    processor = folder if processor is None else Path(processor)
    for name in CLIP_WEIGHTS:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing; transformers' CLIPModel.save_pretrained writes it"
            )
    try:
        config: Any = CLIPConfig(**_clip_config(read_json(folder / CLIP_WEIGHTS[0])))
        with torch.device("meta"):
            network = CLIPModel(config)
        tokenizer = Tokenizer(
            processor / "tokenizer.json", config.text_config.max_position_embeddings, full=False
        )
        mean, std = _normalisation(processor)
    except Exception as error:  # transformers and tokenizers have an error type each
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder} is not a readable CLIP of transformers: {type(error).__name__} {reason}"
        ) from None
    path = folder / CLIP_WEIGHTS[1]
    weights = {name: value for name, value in read_state_dict(path).items() if not are_positions(name)}
    load_state(network, weights, path)
    number_positions(network)
    return _frozen(from_transformers(network, tokenizer, mean, std), dtype)


def _clip_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a CLIPConfig that a config.json gives; what else it says is left out."""
    towers = {"text": TEXT_TOWER, "vision": IMAGE_TOWER}
    return known_entries(("projection_dim", "logit_scale_init_value"), config) | {
        # Old files repeat what differs from the defaults.
        f"{tower}_config": known_entries(
            names, config.get(f"{tower}_config"), config.get(f"{tower}_config_dict")
        )
        for tower, names in towers.items()
    }


def _normalisation(processor: Path) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of the channels; transformers 5 nests them in the processor's file."""
    path = processor / CLIP_PROCESSOR[0]
    path = path if path.is_file() else processor / "processor_config.json"
    config = read_json(path)
    config = config.get("image_processor", config)
    return _channels(config, "image_mean", path), _channels(config, "image_std", path)


def _channels(config: dict[str, Any], key: str, source: str | Path) -> list[float]:
    value = config[key]
    if not (isinstance(value, list) and len(value) == 3 and all(isinstance(v, int | float) for v in value)):
        raise CheckpointError(f"{source}: {key} must be three numbers, got {value!r}")
    return value


OPEN_CLIP = {
    "": ("embed_dim", "init_logit_scale", "quick_gelu", "text_cfg", "vision_cfg"),
    "vision_cfg": ("head_width", "image_size", "layers", "mlp_ratio", "patch_size", "width"),
    "text_cfg": ("context_length", "heads", "hf_tokenizer_name", "layers", "vocab_size", "width"),
}
"""What a configuration of open_clip may say, at its top and in its towers: the numbers of a plain CLIP. Others name
networks, tokenizers and arguments of theirs, which the library would fetch and run."""


def _check_open_clip(config: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Returns a configuration of open_clip whose every entry is known to be harmless.

    Raises:
        CheckpointError: if another is among them.
    """
    for part, known in OPEN_CLIP.items():
        section = config.get(part) if part else config
        if not isinstance(section, dict):
            raise CheckpointError(f"{source}: {part} must be an object, got {section!r}")
        for key, value in section.items():
            if key not in known:
                raise CheckpointError(
                    f"{source}: {part or 'model_cfg'} must hold {', '.join(known)} alone, got {key!r}"
                )
            if key not in ("text_cfg", "vision_cfg", "hf_tokenizer_name") and not isinstance(
                value, int | float
            ):
                raise CheckpointError(f"{source}: {key} must be a number, got {value!r}")
    text = {key: value for key, value in config["text_cfg"].items() if key != "hf_tokenizer_name"}
    return config | {"text_cfg": text}


def load_open_clip(model: str | Path, checkpoint: str | Path, dtype: torch.dtype = torch.float32) -> CLIP:
    """Returns a network of open_clip with the weights of a checkpoint.

    Args:
        model: name of a plain CLIP in open_clip, such as "ViT-H-14", or the path of a folder that holds
            open_clip_config.json and tokenizer.json.
        checkpoint: file of the weights, at the top or under "state_dict".
        dtype: what the network computes in; half types want a GPU.

    Raises:
        ValueError: if open_clip knows no such CLIP.
        CheckpointError: if a file is missing or damaged, the weights do not fit the network, or the configuration names
            anything but the numbers of a plain CLIP.
        ImportError: without open_clip.
    """
    try:
        import open_clip
    except ImportError:
        raise ImportError("open_clip's scorers need open_clip_torch: pip install 'genenv[scorers]'") from None
    preprocessing = {
        "mean": list(open_clip.OPENAI_DATASET_MEAN),
        "std": list(open_clip.OPENAI_DATASET_STD),
    }
    source: str | Path = model
    if isinstance(model, Path):
        source = model / "open_clip_config.json"
        found = read_json(source)
        config = _check_open_clip(found.get("model_cfg", found), source)
        preprocessing |= found.get("preprocess_cfg", {})
        length = config["text_cfg"].get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
        try:
            tokenizer = Tokenizer(model / "tokenizer.json", length, full=True)
        except Exception as error:  # the library has a type of its own
            raise CheckpointError(f"{model / 'tokenizer.json'} is not readable: {error}") from None
    else:
        known = open_clip.get_model_config(model) if model in open_clip.list_models() else None
        if known is None or "custom_text" in known:
            raise ValueError(f"model must be a CLIP of open_clip such as 'ViT-H-14', got {model!r}")
        try:
            config = _check_open_clip(known, model)
        except CheckpointError as error:
            raise ValueError(f"model must be a plain CLIP of open_clip such as 'ViT-H-14': {error}") from None
        tokenizer = open_clip.get_tokenizer(model)
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; it must hold the weights of open_clip's {model}")
    state = read_state_dict(path)
    with torch.device("meta"):
        network: Any = open_clip.CLIP(**config)
    load_state(network, state, path)
    # The causal mask is in no checkpoint.
    network.attn_mask = torch.full(network.attn_mask.shape, -torch.inf).triu(1)
    mean, std = (_channels(preprocessing, key, source) for key in ("mean", "std"))
    return _frozen(from_open_clip(network, tokenizer, mean, std), dtype)


def load_hpsv2(
    version: str = "2.1", checkpoint: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> CLIP:
    """Returns the ViT-H/14 of HPSv2.

    Args:
        version: "2.1" or "2.0".
        checkpoint: its file; None for the released one, in `genenv.checkpoints.checkpoint_folder`.
        dtype: what the network computes in.

    Raises:
        ValueError: if there is no such version.
        CheckpointError: if the file is missing, damaged, another one, or named after the other version.
    """
    if version not in HPSV2:
        raise ValueError(f"version must be one of {', '.join(HPSV2)}, got {version!r}")
    if checkpoint is not None:
        path = Path(checkpoint)
        said = re.search(r"v(\d+)(?:\.(\d+))?", path.name)
        if said and f"{said[1]}.{said[2] or 0}" != version:
            raise CheckpointError(
                f"{path} is named after another version than {version}; their scores are on different scales: "
                f"use {HPSV2[version]}, or ask for the version of the file"
            )
        return load_open_clip("ViT-H-14", path, dtype)
    path = locate(DOWNLOADS[f"hpsv{version}"])
    _, record = check_recorded(path)
    encoder = load_open_clip("ViT-H-14", path, dtype)
    record()
    return encoder


def load_released_clip(weights: str, processor: str | None = None) -> CLIP:
    """Returns the CLIP of a Hugging Face repository: in `checkpoint_folder`, or downloaded there.

    Args:
        weights: folder of config.json and model.safetensors, as in `genenv.releases.DOWNLOADS`.
        processor: folder of the processor's files; None for the same.
    """
    processor = weights if processor is None else processor
    folder, other = _released_folder(weights, CLIP_WEIGHTS), _released_folder(processor, CLIP_PROCESSOR)
    _, record = check_recorded(folder / CLIP_WEIGHTS[1])
    encoder = load_clip(folder, other)
    record()
    return encoder


RELEASED_SCORERS: dict[str, Callable[[str], CLIP]] = {
    "clip": lambda backbone: load_released_clip("clip-vit-large-patch14"),
    "hpsv2": lambda backbone: load_hpsv2("2.1"),
    "hpsv2.0": lambda backbone: load_hpsv2("2.0"),
    "pickscore": lambda backbone: load_released_clip("PickScore_v1", "CLIP-ViT-H-14-laion2B-s32B-b79K"),
}
"""Reward -> its released network, whatever the backbone."""


def _released_folder(name: str, files: Sequence[str]) -> Path:
    try:
        for file in files:
            locate(DOWNLOADS[f"{name}/{file}"])
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {checkpoint_folder() / name} needs {', '.join(files)}") from None
    return checkpoint_folder() / name


def _frozen(encoder: CLIP, dtype: torch.dtype) -> CLIP:
    encoder.network.to(dtype)
    return encoder.eval().requires_grad_(False)
