"""Trains the text-image scorers of the digits tier, in the file formats of the released ones.

Both keep their logit scale fixed, so that cosines spread as far as the loss asks for.
"""

from __future__ import annotations

import importlib.util
import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genenv.checkpoints import replacing_folder
from genenv.models.clip import CLIP, Tokenizer, from_open_clip, from_transformers
from genenv.tiers.digits import DIGITS
from genenv.zoo.training import Labelled, Progress, augment, fit, random_schedules

TEMPLATES = (
    "a handwritten {name}",
    "a handwritten digit {name}",
    "a handwritten {numeral}",
    "the digit {name}",
    "the digit {numeral}",
    "a photo of a {name}",
    "a photo of the number {name}",
    "an image of the number {numeral}",
)
"""What the text encoders learn to read; `genenv.prompts` uses the first."""

CONTEXT_LENGTH = 12
LOGIT_SCALE = 10.0
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
CORRUPTIONS = ("noise", "blur", "blank", "dropout", "label")


def check_scorers() -> None:
    """Raises an ImportError where the libraries are missing whose file formats the scorers have."""
    missing = [name for name in ("open_clip", "transformers") if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"the scorers need {' and '.join(missing)}: pip install 'genenv[scorers]'")


def train_clip(
    out: Path,
    train: Labelled,
    seed: int = 0,
    num_steps: int = 1600,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> None:
    """Trains a CLIP and writes it to the folder `out/clip`, as transformers does.

    The loss is CLIP's (Radford et al. 2021), where every image of a text's class is a match. Corrupted images compete
    for the texts and match none, so a cosine tells a good image from a bad one and not only one class from another.
    """
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(seed)
    with replacing_folder(out / "clip") as folder:
        tokenizer = write_tokenizer(folder)
        network = CLIPModel(
            CLIPConfig(
                text_config={
                    "vocab_size": len(tokenizer),
                    "hidden_size": 32,
                    "intermediate_size": 128,
                    "num_hidden_layers": 2,
                    "num_attention_heads": 2,
                    "max_position_embeddings": CONTEXT_LENGTH,
                    "bos_token_id": tokenizer.bos_token_id,
                    "eos_token_id": tokenizer.eos_token_id,
                    "pad_token_id": tokenizer.pad_token_id,
                },
                vision_config={
                    "image_size": 8,
                    "patch_size": 2,
                    "hidden_size": 64,
                    "intermediate_size": 256,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 4,
                },
                projection_dim=32,
                logit_scale_init_value=math.log(LOGIT_SCALE),
            )
        )
        encoder = from_transformers(
            network, Tokenizer(folder / "tokenizer.json", CONTEXT_LENGTH, full=False), MEAN, STD
        )
        fit_clip(encoder, train, num_steps, batch_size, progress)
        network.save_pretrained(folder)
        preprocessing = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": 8},
            "crop_size": {"height": 8, "width": 8},
            "resample": 3,  # bicubic
            "image_mean": MEAN,
            "image_std": STD,
        }
        _write_json(folder / "preprocessor_config.json", preprocessing)


def fit_clip(
    encoder: CLIP, train: Labelled, num_steps: int, batch_size: int, progress: Progress | None
) -> None:
    """Trains a CLIP in place."""

    def loss_of(step: int) -> Tensor:
        images, labels = draw(train, batch_size)
        kind = torch.randint(CORRUPTIONS.index("label"), (batch_size // 2,))
        strength = 0.4 + 0.6 * torch.rand(batch_size // 2)
        bad = corrupt(images[: batch_size // 2], images[: batch_size // 2], kind, strength)
        texts = encoder.encode_texts(random_texts())  # (10, D)
        logits = LOGIT_SCALE * encoder.encode_images(torch.cat([images, bad])) @ texts.T
        matches = F.one_hot(labels, len(texts)).float()
        shares = matches / matches.sum(0).clamp(min=1)  # of each text's images
        to_image = -(shares * logits.log_softmax(0)[:batch_size]).sum(0).mean()
        return F.cross_entropy(logits[:batch_size], labels) + to_image

    _fit(encoder.network, loss_of, num_steps, progress)


def train_hpsv2(
    out: Path,
    train: Labelled,
    seed: int = 0,
    num_steps: int = 1800,
    batch_size: int = 96,
    progress: Progress | None = None,
) -> None:
    """Trains a preference scorer and writes it to the folder `out/hpsv2`, as open_clip and HPSv2 do.

    As in HPSv2 (Wu et al. 2023), the softmax over the two cosines of a pair and its prompt must choose the better
    image. The worse one is corrupted more, shows another label, or is by the MaskGIT of the folder `out` under a random
    schedule. HPSv2 starts from CLIP; here CLIP's loss on the labels is added instead.
    """
    import open_clip

    torch.manual_seed(seed)
    samples = random_schedules(str(out), torch.Generator().manual_seed(seed), num_images=4096)
    with replacing_folder(out / "hpsv2") as folder:
        tokenizer = write_tokenizer(folder)
        config: dict[str, Any] = {
            "embed_dim": 32,
            "vision_cfg": {"image_size": 8, "patch_size": 2, "width": 48, "head_width": 16, "layers": 3},
            "text_cfg": {
                "context_length": CONTEXT_LENGTH,
                "vocab_size": len(tokenizer),
                "hf_tokenizer_name": "hpsv2",  # open_clip takes the folder's own
                "width": 32,
                "heads": 2,
                "layers": 2,
            },
            "init_logit_scale": math.log(LOGIT_SCALE),
        }
        preprocessing = {"size": 8, "mean": MEAN, "std": STD}
        _write_json(folder / "open_clip_config.json", {"model_cfg": config, "preprocess_cfg": preprocessing})
        network = open_clip.CLIP(**config)
        encoder = from_open_clip(
            network, Tokenizer(folder / "tokenizer.json", CONTEXT_LENGTH, full=True), MEAN, STD
        )
        fit_preferences(encoder, train, samples, num_steps, batch_size, progress)
        torch.save({"state_dict": network.state_dict()}, folder / "hpsv2.pt")


def fit_preferences(
    encoder: CLIP,
    train: Labelled,
    samples: Labelled,
    num_steps: int,
    batch_size: int,
    progress: Progress | None,
) -> None:
    """Trains a CLIP in place to score the better image of a pair higher.

    In half of the pairs a digit is corrupted, in a quarter a sample is, and in a quarter a sample faces a digit.
    """
    quarter = batch_size // 4

    def loss_of(step: int) -> Tensor:
        base, base_labels = draw(train, 3 * quarter)
        sample, sample_labels = draw(samples, 2 * quarter, augmented=False)
        # What is bad may still get worse.
        base[-quarter:], base_labels[-quarter:] = sample[quarter:], sample_labels[quarter:]
        kind = torch.randint(len(CORRUPTIONS), (len(base),))
        weak = torch.rand(len(base)) * 0.5 * (torch.rand(len(base)) < 0.4)
        strong = weak + (1 - weak) * (0.2 + 0.8 * torch.rand(len(base)))
        other = like(train, (base_labels + torch.randint(1, 10, base_labels.shape)) % 10)
        same_label = like(train, base_labels)
        worse_base = torch.where(torch.rand(len(base), 1, 1, 1) < 0.5, base, same_label)
        better = torch.cat([corrupt(base, other, kind, weak), like(train, sample_labels[:quarter])])
        worse = torch.cat([corrupt(worse_base, other, kind, strong), sample[:quarter]])
        prompt = torch.cat([base_labels, sample_labels[:quarter]])
        texts = encoder.encode_texts(random_texts())
        logits = LOGIT_SCALE * encoder.encode_images(torch.cat([better, worse])) @ texts.T
        of_better, of_worse = logits.gather(1, prompt.repeat(2)[:, None])[:, 0].chunk(2)
        return F.softplus(of_worse - of_better).mean() + F.cross_entropy(logits[: len(better)], prompt)

    _fit(encoder.network, loss_of, num_steps, progress)


def draw(images: Labelled, number: int, augmented: bool = True) -> Labelled:
    """Returns random images and their labels; half of them turned, scaled and shifted a little."""
    index = torch.randint(len(images[0]), (number,))
    batch = images[0][index]
    if augmented:
        batch = torch.where(torch.rand(number, 1, 1, 1) < 0.5, augment(batch), batch)
    return batch, images[1][index]


def like(images: Labelled, labels: Tensor) -> Tensor:
    """Returns one random image of each label."""
    candidates = (images[1] == labels[:, None]).float()
    return images[0][candidates.multinomial(1)[:, 0]]


def corrupt(images: Tensor, others: Tensor, kind: Tensor, strength: Tensor) -> Tensor:
    """Returns images (N, 1, 8, 8), each under one of `CORRUPTIONS` with a strength (N,) in [0, 1].

    Noise, blur, emptiness or an image of `others` takes the share `strength` of each pixel; dropout empties this share
    of the pixels.
    """
    s = strength.view(-1, 1, 1, 1)
    blurred = F.avg_pool2d(F.avg_pool2d(images, 3, 1, 1), 3, 1, 1)
    every = torch.stack(
        [
            images.lerp(torch.rand(images.shape), s),
            images.lerp(blurred, s),
            images * (1 - s),
            images * (torch.rand(images.shape) >= s),
            images.lerp(others, s),
        ]
    )
    return every[kind, torch.arange(len(images))]


def random_texts() -> list[str]:
    """Returns a text for each digit, each by a random template."""
    chosen = torch.randint(len(TEMPLATES), (len(DIGITS.class_names),)).tolist()
    return [
        TEMPLATES[c].format(name=name, numeral=n)
        for n, (c, name) in enumerate(zip(chosen, DIGITS.class_names, strict=True))
    ]


def write_tokenizer(folder: Path) -> Any:
    """Writes a CLIP tokenizer whose vocabulary is the templates' words and single ASCII letters, and returns it."""
    from transformers import CLIPTokenizer

    words = {w for t in TEMPLATES for w in t.split() if w.isalpha()} | set(DIGITS.class_names)
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()-"
    vocabulary, merges = [*letters, *(f"{letter}</w>" for letter in letters)], []
    for word in sorted(words):
        left = word[0]
        for right in (*word[1:-1], f"{word[-1]}</w>") if len(word) > 1 else ():
            if (left, right) not in merges:
                merges.append((left, right))
                vocabulary.append(left + right)
            left += right
    # The end of a text has the highest number: open_clip finds it by that.
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    _write_json(folder / "vocab.json", {token: i for i, token in enumerate(vocabulary)})
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=CONTEXT_LENGTH)
    tokenizer.save_pretrained(folder)
    return tokenizer


def _fit(network: nn.Module, loss_of: Any, num_steps: int, progress: Progress | None) -> None:
    parameters = [p for name, p in network.named_parameters() if name != "logit_scale"]
    optimiser = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.05)
    fit(network, optimiser, loss_of, num_steps, 0.995, progress, max_gradient=1.0)


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
