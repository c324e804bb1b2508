"""Fixed scorers that compare an image with its class's prompt: CLIP, HPSv2 and PickScore."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genenv.checkpoints import (
    CheckpointError,
    check_recorded,
    checked_folder,
    checkpoint_folder,
    is_released,
    load_state,
    locate,
    read_state_dict,
)
from genenv.models.clip import CLIP, from_open_clip, from_transformers
from genenv.prompts import prompts
from genenv.protocols import Context
from genenv.releases import Download

CLIP_L14 = "openai/clip-vit-large-patch14"
PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HPSV2 = {"2.1": "HPS_v2.1_compressed.pt", "2.0": "HPS_v2_compressed.pt"}
"""Version -> released file. Their scores are on different scales, and the files fit the same network."""

WEIGHTS = ("config.json", "model.safetensors")
PROCESSOR = ("preprocessor_config.json", "tokenizer.json", "tokenizer_config.json")


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


def make_clip(backbone: str, device: str) -> PromptScore:
    """Returns the CLIP score: OpenAI's ViT-L/14, or the digits' own CLIP."""
    if is_released(backbone):
        encoder = _load_released(CLIP_L14, CLIP_L14)
    else:
        encoder = load_clip(checked_folder(backbone, "clip"))
    return PromptScore("clip", encoder.to(device), prompts(backbone))


def make_hpsv2(backbone: str, device: str) -> PromptScore:
    """Returns the human preference score v2.1 (Wu et al. 2023), or the digits' own preference scorer."""
    if is_released(backbone):
        encoder = load_hpsv2("2.1")
    else:
        folder = checked_folder(backbone, "hpsv2")
        encoder = load_open_clip(f"local-dir:{folder}", folder / "hpsv2.pt")
    return PromptScore("hpsv2", encoder.to(device), prompts(backbone))


def make_hpsv2_0(backbone: str, device: str) -> PromptScore:
    """Returns the human preference score v2.0, the older weights of HPSv2 on another scale."""
    _check_released("hpsv2.0", backbone)
    return PromptScore("hpsv2.0", load_hpsv2("2.0").to(device), prompts(backbone))


def make_pickscore(backbone: str, device: str) -> PromptScore:
    """Returns PickScore (Kirstain et al. 2023), by its authors' definition the cosine times the logit scale."""
    _check_released("pickscore", backbone)
    encoder = _load_released(PICKSCORE, PICKSCORE_PROCESSOR).to(device)
    return PromptScore("pickscore", encoder, prompts(backbone), scale=encoder.logit_scale)


def _check_released(name: str, backbone: str) -> None:
    if not is_released(backbone):
        raise ValueError(
            f"reward {name!r} has no network for digits, which backbone {backbone!r} makes; use 'clip' or 'hpsv2'"
        )


def load_clip(
    folder: str | Path, processor: str | Path | None = None, dtype: torch.dtype = torch.float32
) -> CLIP:
    """Returns the CLIP of a folder that transformers' `CLIPModel.save_pretrained` wrote, without network access.

    Args:
        folder: holds config.json and model.safetensors.
        processor: holds preprocessor_config.json and the tokenizer's files; None for the same folder.
        dtype: what the network computes in; half types want a GPU.

    Raises:
        CheckpointError: if a file is missing or damaged, or the weights are not those of a CLIP.
        ImportError: without transformers.
    """
    try:
        from transformers import CLIPModel, CLIPTokenizer
    except ImportError:
        raise ImportError("CLIP scorers need transformers: pip install 'genenv[scorers]'") from None
    folder = Path(folder)
    processor = folder if processor is None else Path(processor)
    for name in WEIGHTS:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name} is missing; transformers' CLIPModel.save_pretrained writes it"
            )
    try:
        with _without_progress_bars():
            loaded: Any = CLIPModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        network, report = loaded
        tokenizer = CLIPTokenizer.from_pretrained(processor, local_files_only=True)
        mean, std = _normalisation(processor)
    except Exception as error:  # transformers, tokenizers and safetensors have an error type each
        reason = " ".join(str(error).split())[:300]
        raise CheckpointError(
            f"{folder} is not a readable CLIP of transformers: {type(error).__name__} {reason}"
        ) from None
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{folder / WEIGHTS[1]} is not of a CLIP: it lacks {', '.join(missing[:3])}")
    return _frozen(from_transformers(network, tokenizer, mean, std), dtype)


def _normalisation(processor: Path) -> tuple[list[float], list[float]]:
    """Returns mean and standard deviation of the channels; transformers 5 nests them in the processor's file."""
    path = processor / PROCESSOR[0]
    config = json.loads((path if path.is_file() else processor / "processor_config.json").read_text())
    config = config.get("image_processor", config)
    return config["image_mean"], config["image_std"]


@contextlib.contextmanager
def _without_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def load_open_clip(model: str, checkpoint: str | Path, dtype: torch.dtype = torch.float32) -> CLIP:
    """Returns a network of open_clip with the weights of a checkpoint.

    Args:
        model: a CLIP's name in open_clip, such as "ViT-H-14", or "local-dir:FOLDER" with an open_clip_config.json.
        checkpoint: file of the weights, at the top or under "state_dict".
        dtype: what the network computes in; half types want a GPU.

    Raises:
        ValueError: if open_clip knows no such CLIP.
        CheckpointError: if the file is missing, damaged, or does not fit the network.
        ImportError: without open_clip.
    """
    try:
        import open_clip
    except ImportError:
        raise ImportError("open_clip's scorers need open_clip_torch: pip install 'genenv[scorers]'") from None
    config = open_clip.get_model_config(model)
    if config is None or "custom_text" in config:
        raise ValueError(f"model must be a CLIP of open_clip such as 'ViT-H-14', got {model!r}")
    preprocessing = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    if model.startswith("local-dir:"):
        text = Path(model.removeprefix("local-dir:"), "open_clip_config.json").read_text()
        preprocessing |= json.loads(text).get("preprocess_cfg", {})
    path = Path(checkpoint)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; it must hold the weights of open_clip's {model}")
    state = read_state_dict(path)
    with torch.device("meta"):
        network: Any = open_clip.CLIP(**config)
    load_state(network, state, path)
    # The causal mask is in no checkpoint.
    network.attn_mask = torch.full(network.attn_mask.shape, -torch.inf).triu(1)
    tokenizer = open_clip.get_tokenizer(model)
    return _frozen(from_open_clip(network, tokenizer, preprocessing["mean"], preprocessing["std"]), dtype)


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
    path = locate(_download("xswu/HPSv2", HPSV2[version], HPSV2[version]))
    _, record = check_recorded(path)
    encoder = load_open_clip("ViT-H-14", path, dtype)
    record()
    return encoder


def _load_released(repo: str, processor: str) -> CLIP:
    """Returns the CLIP of a Hugging Face repository: in `checkpoint_folder`, or downloaded there."""
    folder, other = _released_folder(repo, WEIGHTS), _released_folder(processor, PROCESSOR)
    _, record = check_recorded(folder / WEIGHTS[1])
    encoder = load_clip(folder, other)
    record()
    return encoder


def _released_folder(repo: str, files: Sequence[str]) -> Path:
    name = repo.split("/")[1]
    try:
        for file in files:
            locate(_download(repo, file, f"{name}/{file}"))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {checkpoint_folder() / name} needs {', '.join(files)}") from None
    return checkpoint_folder() / name


def _download(repo: str, file: str, local: str) -> Download:
    page = f"https://huggingface.co/{repo}"
    return Download(local, page, "as the page says", url=f"{page}/resolve/main/{file}")


def _frozen(encoder: CLIP, dtype: torch.dtype) -> CLIP:
    encoder.network.to(dtype)
    return encoder.eval().requires_grad_(False)
