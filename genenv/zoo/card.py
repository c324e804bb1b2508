"""The model card of the digits tier, with every number measured anew."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genenv.checkpoints import load_generator, write_text
from genenv.data import digits
from genenv.evaluation import Evaluator, first_seed
from genenv.metrics.frechet import frechet_distance, moments
from genenv.metrics.judge import Judge
from genenv.rewards.clip import PromptScore, make_clip, make_hpsv2
from genenv.rollout import schedule_actions, schedule_actor
from genenv.schedules import handcrafted
from genenv.zoo.scorers import CORRUPTIONS, corrupt, like
from genenv.zoo.training import random_schedules

EVALUATION_SEEDS = 3
METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "accuracy")


def write_card(folder: Path, seconds: dict[str, int]) -> None:
    """Measures the networks of a folder and writes its CARD.md.

    Args:
        folder: holds every part of the tier.
        seconds: {part: time its training took}.
    """
    write_text(folder / "CARD.md", card(folder, seconds))


GENERATORS: tuple[tuple[str, str, tuple[int | None, ...]], ...] = (
    ("MaskGIT", "AdaGen/MaskGIT-v0", (4, 8, 16)),
    ("VAR", "AdaGen/VAR-v0", (None,)),
    ("LlamaGen", "AdaGen/LlamaGen-v0", (None,)),
    ("DiT", "AdaGen/DiT-v0", (4, 8, 16)),
    ("SiT", "AdaGen/SiT-v0", (4, 8, 16)),
)
"""Name, environment id and steps that are measured; None: the paradigm's own."""


@torch.no_grad()
def card(folder: Path, seconds: dict[str, int]) -> str:
    """Returns the text of the card, about the parts that the folder holds."""
    from genenv.zoo.digits import split

    def network(part: str) -> Any:
        return load_generator(part, str(folder))

    images, labels = digits()
    judge = Judge(str(folder))
    real = judge.real
    assert real is not None
    _, test = split()
    halves = []
    for seed in range(10):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        first, second = real[order[: len(order) // 2]], real[order[len(order) // 2 :]]
        halves.append(frechet_distance(*moments(first), *moments(second)))

    files, rows = [], []
    for part, what in PARTS.items():
        if not (folder / f"{part}.safetensors").is_file():
            continue
        model = network(part)
        measured = f"{sum(p.numel() for p in model.parameters()):,} parameters"
        if part in ("vq", "msvq"):
            tokens = model.encode(images)
            rebuilt = model.reconstruct(images)
            error = 4 * (rebuilt - images).square().mean()  # pixels in [-1, 1]
            measured += f"; MSE {error:.4f} of pixels in [-1, 1]; {tokens.unique().numel()}/128 codes used"
            rows.append((f"reconstructions by `{part}`", [judge.measure(rebuilt, labels)]))
        if part in ("judge", "reward_features"):
            right = (model(images[test]).argmax(1) == labels[test]).float().mean()
            measured += f"; {right:.1%} of 360 held-out images right"
        files.append(f"| `{part}.safetensors` | {what} | {measured} |")
    for part, (what, make) in SCORERS.items():
        if (folder / part).is_dir():
            scorer = make(str(folder), "cpu")
            measured = _preferences(scorer, images[test], labels[test], str(folder))
            files.append(f"| `{part}/` | {what} | {measured} |")
    for name, env_id, steps in GENERATORS:
        if not (folder / f"{name.lower()}.safetensors").is_file():
            continue
        for num_steps in steps:
            for off in (False, True):
                title = name if num_steps is None else f"{name}, {num_steps} steps"
                title += ", guidance off" if off else ", hand-crafted"
                rows.append((title, _generated(folder, env_id, num_steps, off)))
    table = "\n".join(f"| {name} | " + " | ".join(_cell(r, m) for m in METRICS) + " |" for name, r in rows)
    return CARD.format(
        files="\n".join(files),
        halves=statistics.mean(halves),
        spread=statistics.stdev(halves),
        table=table,
        header=" | ".join(METRICS),
        rule="|".join(["---:"] * len(METRICS)),
        times=", ".join(f"{part} {value} s" for part, value in seconds.items()),
        seeds=EVALUATION_SEEDS,
    )


def _preferences(scorer: PromptScore, images: Tensor, labels: Tensor, backbone: str) -> str:
    """Returns how often a scorer reads the label of held-out images, and scores them above worse ones."""
    cosines = scorer.encoder.encode_images(images) @ scorer.texts.T
    own = cosines.gather(1, labels[:, None])[:, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        half = torch.full((len(images),), 0.5)
        worse = {
            kind: corrupt(images, like((images, labels), (labels + 1) % 10), torch.full_like(labels, i), half)
            for i, kind in enumerate(CORRUPTIONS)
        }
        samples = random_schedules(backbone, torch.Generator().manual_seed(1), num_images=1024)
        worse["MaskGIT"] = like(samples, labels)
    beaten = {kind: (own > scorer(other, labels)).float().mean() for kind, other in worse.items()}
    pairs = ", ".join(f"{kind} {share:.0%}" for kind, share in beaten.items())
    right = (cosines.argmax(1) == labels).float().mean()
    return f"{right:.1%} of 360 held-out labels read; prefers them to their like with {pairs}"


def _generated(folder: Path, env_id: str, num_steps: int | None, off: bool) -> list[dict[str, float]]:
    """Returns the metrics of each evaluation seed under the hand-crafted schedule, with or without its guidance."""
    kwargs = {"backbone": str(folder), "num_steps": num_steps, "action_mode": "physical"}
    evaluator = Evaluator(env_id, kwargs)
    params = schedule_actions(evaluator.env).params
    schedule = handcrafted(params)
    if off:
        schedule[:, [param.name for param in params].index("guidance_weight")] = 0
    actor = schedule_actor(schedule)
    return [evaluator(actor, first_seed(k, 2000)).metrics for k in range(EVALUATION_SEEDS)]


def _cell(results: list[dict[str, float]], metric: str) -> str:
    values = [result[metric] for result in results]
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


PARTS = {
    "vq": "VQ tokenizer, 8x8 -> 4x4 tokens, of MaskGIT and LlamaGen",
    "maskgit": "class-conditional MaskGIT",
    "llamagen": "class-conditional LlamaGen, raster order",
    "msvq": "multi-scale residual VQ, token maps of 1, 2, 3 and 4 a side, of VAR",
    "var": "class-conditional VAR",
    "dit": "class-conditional DiT on the pixels, noise prediction on the VP path",
    "sit": "class-conditional SiT on the pixels, velocity on the linear path",
    "judge": "classifier, its 64 features give the held-out metrics",
    "reward_features": "a smaller one, for rewards",
    "discriminator": 'for `reward="adversarial"`: real digits against MaskGIT\'s under random schedules',
}
"""Network -> what it is."""

SCORERS = {
    "clip": ('CLIP of images and prompts such as "a handwritten three", as transformers saves it', make_clip),
    "hpsv2": ("preference scorer of pairs, as open_clip and HPSv2 save it", make_hpsv2),
}
"""Folder of a scorer -> what it is, and the reward that holds it."""

CARD = """# The digits tier

Networks trained on the 1,797 handwritten 8x8 digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak 1998, CC BY 4.0). The weights are MIT, like the code. They are for research on schedules: the
digits are tiny, and the generators have seen every one of them. Labels are dropped from 10 % of the generators'
training images, for classifier-free guidance.

Made by the recipes of `genenv zoo build digits --out DIR` (fixed seeds; training time on 2 CPU cores: {times}).
Every number below is measured when the card is written; `sha256` of each file: `manifest.json`.

| file | what | measured |
|---|---|---|
{files}
| `reference.safetensors` | the 1,797 real images in the features of `judge`: mean, standard deviation, covariance | |

Held-out metrics: features standardised over the real images; FID, density and coverage (k = 5) by genenv, KID
(20 subsets of 1,000), precision and recall (k = 3) by torch-fidelity. 2,000 images, 200 a class, mean ± standard
deviation over {seeds} disjoint sets of evaluation seeds.

| images | {header} |
|---|{rule}|
{table}

The scorers were tested on corruptions that take half of each pixel (noise, blur, fading, dropped pixels, another
digit), and on MaskGIT's images under random schedules.

The floor of FID is what real images score among themselves: one random half against the other,
{halves:.2f} ± {spread:.2f} (10 splits of 898 and 899 images; the value falls with the number of images).

Of the shipped weights: at 16 steps (VAR and LlamaGen have their own number) the hand-crafted schedule stays within
twice that floor for VAR and LlamaGen, and for DiT and SiT with guidance off: their guidance was published for
ImageNet, and costs diversity here. MaskGIT does not come as near with either. Its confidence picks typical digits,
the more so the more steps it takes: recall falls. Neither tokenizer nor network is the limit, for LlamaGen's FID is
low on the same tokens, and a searched or learned schedule brings MaskGIT's at 4 steps down to about the floor
(README, "Results").
"""
