"""Networks that embed images and texts in one space: CLIP, and the preference scorers fine-tuned from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

START_OF_TEXT, END_OF_TEXT = "<|startoftext|>", "<|endoftext|>"


class CLIP(nn.Module):
    """Embeds images and texts as unit vectors whose dot product says how well they match (Radford et al. 2021).

    The network computes in the type of its own weights (`clip.network.half()`), in chunks; what goes in and comes out
    is float32 on the network's device. The images' preprocessing is the released one on tensors: bicubic with
    antialiasing to `image_size` on the shorter side, and the middle of the longer one.

    Args:
        network: has a `logit_scale`.
        image_features: the network's function of pixels (N, 3, S, S) -> (N, D).
        text_features: the network's function of N texts and a device -> (N, D).
        image_size: side S in pixels.
        mean, std: of the three channels that the network was trained with.
        chunk_size: images or texts that are embedded at once.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        image_features: Callable[[Tensor], Tensor],
        text_features: Callable[[list[str], torch.device], Tensor],
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        chunk_size: int = 256,
    ):
        super().__init__()
        self.network, self.image_features, self.text_features = network, image_features, text_features
        self.image_size, self.chunk_size = image_size, chunk_size
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def logit_scale(self) -> float:
        """The factor that turns cosines into the logits of the network's training."""
        return self.network.get_parameter("logit_scale").exp().item()

    def encode_images(self, images: Tensor) -> Tensor:
        """Returns unit vectors (N, D) of images (N, C, H, W) in [0, 1], C being 1 (grey) or 3."""
        return torch.cat([self._image_chunk(chunk) for chunk in images.split(self.chunk_size)])

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Returns unit vectors (K, D) of K texts."""
        chunks = [list(texts[i : i + self.chunk_size]) for i in range(0, len(texts), self.chunk_size)]
        features = [self.text_features(chunk, self.mean.device) for chunk in chunks]
        return F.normalize(torch.cat(features).float(), dim=-1)

    def cosines(self, images: Tensor, texts: Tensor) -> Tensor:
        """Returns (N,) of images (N, C, H, W) in [0, 1] with the encoded text of each (N, D)."""
        return (self.encode_images(images) * texts).sum(-1)

    def preprocess(self, images: Tensor) -> Tensor:
        """Returns the normalised pixels (N, 3, S, S) that the network sees."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got shape {tuple(images.shape)}")
        images, side = images.float().clamp(0, 1), self.image_size
        shorter = min(images.shape[-2:])
        if shorter != side:
            size = [side * length // shorter for length in images.shape[-2:]]
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((length - side) // 2 for length in images.shape[-2:])
        images = images[..., top : top + side, left : left + side]
        return (images.expand(-1, 3, -1, -1) - self.mean) / self.std

    def _image_chunk(self, images: Tensor) -> Tensor:
        dtype = next(self.network.parameters()).dtype
        return F.normalize(self.image_features(self.preprocess(images).to(dtype)).float(), dim=-1)


class Tokenizer:
    """CLIP's byte-pair encoding, of the file `tokenizer.json` alone, or of a folder's `vocab.json` and `merges.txt`.

    No class that a folder of weights names is made, and no code of it runs, as transformers' AutoTokenizer would do.

    Args:
        path: of the file, or of the folder with the two.
        context_length: tokens of a text, at most; longer ones are cut.
        full: pad all texts to that many tokens, rather than to the longest.
        padding: what is padded with.

    Raises:
        Exception: of the library tokenizers, if a file cannot be read; ValueError if it is not CLIP's.
    """

    def __init__(self, path: Path, context_length: int, full: bool, padding: str = END_OF_TEXT):
        from tokenizers import Tokenizer as Library

        self.library = _byte_pairs(path, padding) if path.is_dir() else Library.from_file(str(path))
        for token in (END_OF_TEXT, padding):
            if self.library.token_to_id(token) is None:
                raise ValueError(f"{path} has no {token!r}, it is not of a CLIP")
        self.library.enable_truncation(context_length)
        self.library.enable_padding(
            pad_id=self.library.token_to_id(padding),
            pad_token=padding,
            length=context_length if full else None,
        )

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Returns the tokens (N, L) of N texts, and which of them are no padding, (N, L), int64."""
        found = self.library.encode_batch(texts)
        return torch.tensor([each.ids for each in found]), torch.tensor(
            [each.attention_mask for each in found]
        )


def _byte_pairs(folder: Path, padding: str) -> Any:
    """Returns the tokenizer of a folder that holds the vocabulary and the merges alone, as CLIP was published."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
    from tokenizers.models import BPE

    files = str(folder / "vocab.json"), str(folder / "merges.txt")
    library = Tokenizer(
        BPE.from_file(*files, continuing_subword_prefix="", end_of_word_suffix="</w>", unk_token=END_OF_TEXT)
    )
    library.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    words = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+")
    library.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    ends = {token: library.token_to_id(token) for token in (START_OF_TEXT, END_OF_TEXT)}
    for token, number in ends.items():
        if number is None:
            raise ValueError(f"{files[0]} has no {token!r}, it is not of a CLIP")
    library.add_special_tokens([*ends, padding])
    library.post_processor = processors.TemplateProcessing(
        f"{START_OF_TEXT} $0 {END_OF_TEXT}", special_tokens=list(ends.items())
    )
    return library


TOWER = (
    "attention_dropout",
    "hidden_act",
    "hidden_size",
    "intermediate_size",
    "layer_norm_eps",
    "num_attention_heads",
    "num_hidden_layers",
)
TEXT_TOWER = (*TOWER, "bos_token_id", "eos_token_id", "max_position_embeddings", "pad_token_id", "vocab_size")
IMAGE_TOWER = (*TOWER, "image_size", "num_channels", "patch_size")
"""What a CLIP's config.json may say of its towers; transformers would act on more, such as kernels to download."""


def known_entries(names: Sequence[str], *sources: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns the entries of these names, numbers and an activation's name, of configurations; later ones win.

    Raises:
        ValueError: if one is anything else.
    """
    found = {key: value for source in sources for key, value in (source or {}).items() if key in names}
    for key, value in found.items():
        if not isinstance(value, str if key == "hidden_act" else int | float):
            raise ValueError(f"{key} must be a {'name' if key == 'hidden_act' else 'number'}, got {value!r}")
    return found


def are_positions(name: str) -> bool:
    """Returns whether a tensor of transformers' CLIP numbers the places: it is in no file, or in old ones."""
    return name.endswith(".position_ids")


def number_positions(network: nn.Module) -> None:
    """Sets the tensors that number the places, which no file holds."""
    for name, value in list(network.named_buffers()):
        if are_positions(name):
            owner = network.get_submodule(name.rpartition(".")[0])
            owner.position_ids = torch.arange(value.shape[-1]).expand(value.shape)


@dataclasses.dataclass(frozen=True)
class TransformersTower:
    """The functions of a `transformers.CLIPModel`."""

    network: Any
    tokenizer: Callable[[list[str]], tuple[Tensor, Tensor]]

    def images(self, pixels: Tensor) -> Tensor:
        """Returns features (N, D) of pixels (N, 3, S, S)."""
        return _projected(self.network.get_image_features(pixel_values=pixels))

    def texts(self, texts: list[str], device: torch.device) -> Tensor:
        """Returns features (N, D) of N texts."""
        tokens, mask = (part.to(device) for part in self.tokenizer(texts))
        return _projected(self.network.get_text_features(input_ids=tokens, attention_mask=mask))


def _projected(output: Any) -> Tensor:
    """Returns the embedding: transformers 4 gives it bare, transformers 5 as the output's pooled state."""
    return output if isinstance(output, Tensor) else output.pooler_output


@dataclasses.dataclass(frozen=True)
class OpenCLIPTower:
    """The functions of an `open_clip.CLIP`."""

    network: Any
    tokenizer: Callable[[list[str]], Any]

    def images(self, pixels: Tensor) -> Tensor:
        """Returns features (N, D) of pixels (N, 3, S, S)."""
        return self.network.encode_image(pixels)

    def texts(self, texts: list[str], device: torch.device) -> Tensor:
        """Returns features (N, D) of N texts."""
        tokens = self.tokenizer(texts)
        tokens = tokens if isinstance(tokens, Tensor) else tokens[0]  # open_clip's own give no mask
        return self.network.encode_text(tokens.to(device))


def from_transformers(
    network: Any, tokenizer: Tokenizer, mean: Sequence[float], std: Sequence[float]
) -> CLIP:
    """Returns a `transformers.CLIPModel` with its tokenizer as a CLIP."""
    tower = TransformersTower(network, tokenizer)
    return CLIP(network, tower.images, tower.texts, network.config.vision_config.image_size, mean, std)


def from_open_clip(
    network: Any, tokenizer: Callable[[list[str]], Any], mean: Sequence[float], std: Sequence[float]
) -> CLIP:
    """Returns an `open_clip.CLIP` with its tokenizer as a CLIP."""
    tower = OpenCLIPTower(network, tokenizer)
    return CLIP(network, tower.images, tower.texts, network.visual.image_size[0], mean, std)
