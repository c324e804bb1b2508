"""The model card of the digits tier, with every number measured anew."""

from __future__ import annotations

import statistics
from pathlib import Path

import torch

from genenv.checkpoints import load_generator, write_text
from genenv.data import digits
from genenv.evaluation import Evaluator, held_out_seed
from genenv.metrics.frechet import frechet_distance, moments
from genenv.metrics.judge import Judge
from genenv.rollout import static_actor

EVALUATION_SEEDS = 3
METRICS = ("fid", "kid", "precision", "recall", "density", "coverage", "accuracy")


def write_card(folder: Path, seconds: dict[str, int]) -> None:
    """Measures the networks of a folder and writes its CARD.md.

    Args:
        folder: holds every part of the tier.
        seconds: {part: time its training took}.
    """
    write_text(folder / "CARD.md", card(folder, seconds))


@torch.no_grad()
def card(folder: Path, seconds: dict[str, int]) -> str:
    """Returns the text of the card."""
    from genenv.zoo.digits import split

    images, labels = digits()
    judge = Judge(str(folder))
    tokenizer = load_generator("vq", str(folder))
    transformer = load_generator("maskgit", str(folder))
    tokens = tokenizer.encode(images)
    rebuilt = tokenizer.decode(tokens)
    error = (4 * (rebuilt - images).square().mean()).item()  # pixels in [-1, 1]
    _, test = split()
    accuracy = {
        name: (load_generator(name, str(folder))(images[test]).argmax(1) == labels[test])
        .float()
        .mean()
        .item()
        for name in ("judge", "reward_features")
    }
    halves = []
    for seed in range(10):
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
        first, second = judge.real[order[: len(order) // 2]], judge.real[order[len(order) // 2 :]]
        halves.append(frechet_distance(*moments(first), *moments(second)))
    rows = [("reconstructions", [judge.measure(rebuilt, labels)])]
    for num_steps in (4, 8, 16):
        evaluator = Evaluator("AdaGen/MaskGIT-v0", {"backbone": str(folder), "num_steps": num_steps})
        actor = static_actor(evaluator.env)
        rows.append(
            (
                f"MaskGIT, hand-crafted, {num_steps} steps",
                [evaluator(actor, held_out_seed(k, 2000)).metrics for k in range(EVALUATION_SEEDS)],
            )
        )
    table = "\n".join(f"| {name} | " + " | ".join(_cell(r, m) for m in METRICS) + " |" for name, r in rows)
    times = ", ".join(f"{part} {value} s" for part, value in seconds.items())
    parameters = sum(p.numel() for p in transformer.parameters())
    return CARD.format(
        error=error,
        used=tokens.unique().numel(),
        codebook=tokenizer.codebook_size,
        parameters=f"{parameters:,}",
        judge=accuracy["judge"],
        reward=accuracy["reward_features"],
        halves=statistics.mean(halves),
        spread=statistics.stdev(halves),
        table=table,
        header=" | ".join(METRICS),
        rule="|".join(["---:"] * len(METRICS)),
        times=times,
        seeds=EVALUATION_SEEDS,
    )


def _cell(results: list[dict[str, float]], metric: str) -> str:
    values = [result[metric] for result in results]
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


CARD = """# The digits tier

Networks trained on the 1,797 handwritten 8x8 digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits",
Alpaydin and Kaynak 1998, CC BY 4.0). The weights are MIT, like the code. They are for research on schedules: the
digits are tiny, and the generator has seen every one of them.

Made by the recipe of `genenv zoo build digits --out DIR` (fixed seeds; training time on 2 CPU cores: {times}).
Every number below is measured when the card is written; `sha256` of each file: `manifest.json`.

| file | what | measured |
|---|---|---|
| `vq.safetensors` | VQ tokenizer, 8x8 -> 4x4 tokens | MSE {error:.4f} of pixels in [-1, 1]; {used}/{codebook} codes |
| `maskgit.safetensors` | class-conditional MaskGIT, {parameters} parameters, 10 % label dropout | table below |
| `judge.safetensors` | classifier, its 64 features give the held-out metrics | {judge:.1%} of 360 held-out |
| `reward_features.safetensors` | a smaller one, for rewards | {reward:.1%} of 360 held-out |
| `discriminator.safetensors` | for `reward="adversarial"`: real digits against MaskGIT's under random schedules | |
| `reference.safetensors` | feature moments of the 1,797 real images | |

Held-out metrics: features standardised over the real images; FID, density and coverage (k = 5) by genenv, KID
(20 subsets of 1,000), precision and recall (k = 3) by torch-fidelity. 2,000 images, 200 a class, mean ± standard
deviation over {seeds} disjoint sets of evaluation seeds.

| images | {header} |
|---|{rule}|
{table}

The floor of FID is what real images score among themselves: one random half against the other,
{halves:.2f} ± {spread:.2f} (10 splits of 898 and 899 images; the value falls with the number of images).
"""
