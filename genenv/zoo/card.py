"""The model card of a folder of networks, with every number measured anew."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genenv.checkpoints import write_text
from genenv.evaluation import Evaluator, first_seed
from genenv.metrics.judge import Judge
from genenv.metrics.names import CARD
from genenv.rewards import make_reward
from genenv.rewards.clip import PromptScore
from genenv.rollout import schedule_actions, schedule_actor
from genenv.schedules import handcrafted
from genenv.tiers import PUBLISHED, load_part, tier_of
from genenv.zoo.scorers import CORRUPTIONS, corrupt, like
from genenv.zoo.training import Labelled, random_schedules

EVALUATION_SEEDS = 3
NUM_IMAGES = 2000


@dataclasses.dataclass(frozen=True)
class Generator:
    """A generator that a card measures.

    Attributes:
        name: in the table.
        part: its network.
        env_id: its environment.
        num_steps: that are measured; None: the paradigm's own number.
    """

    name: str
    part: str
    env_id: str
    num_steps: tuple[int | None, ...] = (None,)


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a card is about.

    Attributes:
        text: with {files}, {header}, {rule}, {table}, {times}, {seeds}, {halves} and {spread}.
        parts: {part: what it is}, networks and scorers.
        generators: whose images are measured.
        test: indices (K,) of the real images on which no judge was trained.
    """

    text: str
    parts: Mapping[str, str]
    generators: Sequence[Generator]
    test: Tensor


def write_card(folder: Path, contents: Contents, seconds: Mapping[str, int]) -> None:
    """Measures the networks of a folder and writes its CARD.md.

    Args:
        folder: holds the parts.
        contents: what is measured and said.
        seconds: {part: time its training took}.
    """
    write_text(folder / "CARD.md", card(folder, contents, seconds))


@torch.no_grad()
def card(folder: Path, contents: Contents, seconds: Mapping[str, int]) -> str:
    """Returns the text of the card, about the parts that the folder holds."""
    tier = tier_of(str(folder))
    images, labels = tier.need("real_images")()
    held_out = images[contents.test], labels[contents.test]
    judge = Judge(str(folder))
    real = judge.real
    assert real is not None
    files, rows = [], []
    for part, what in contents.parts.items():
        if part in tier.folder_parts and (folder / part).is_dir():
            scorer: Any = make_reward(part, str(folder), "cpu")
            measured = _preferences(scorer.rewards[part], held_out, str(folder))
            files.append(f"| `{part}/` | {what} | {measured} |")
        if not (folder / f"{part}.safetensors").is_file():
            continue
        if part not in tier.parts:
            files.append(f"| `{part}.safetensors` | {what} | |")
            continue
        model = load_part(part, str(folder))
        measured = f"{sum(p.numel() for p in model.parameters()):,} parameters"
        if hasattr(model, "reconstruct"):
            tokens, rebuilt = model.encode(images), model.reconstruct(images)
            error = 4 * (rebuilt - images).square().mean()  # pixels in [-1, 1]
            measured += f"; MSE {error:.4f} of pixels in [-1, 1]; "
            measured += f"{tokens.unique().numel()}/{model.codebook_size} codes used"
            rows.append((f"reconstructions by `{part}`", [judge.measure(rebuilt, labels)]))
        if hasattr(model, "features") and hasattr(model, "head"):
            right = (model(held_out[0]).argmax(1) == held_out[1]).float().mean()
            measured += f"; {right:.1%} of {len(contents.test)} held-out images right"
        files.append(f"| `{part}.safetensors` | {what} | {measured} |")
    for generator in contents.generators:
        if not (folder / f"{generator.part}.safetensors").is_file():
            continue
        for num_steps in generator.num_steps:
            for off in (False, True):
                title = generator.name if num_steps is None else f"{generator.name}, {num_steps} steps"
                title += ", published" + (", guidance off" if off else "")
                rows.append((title, _generated(folder, generator.env_id, num_steps, off)))
    table = "\n".join(f"| {name} | " + " | ".join(_cell(r, m) for m in CARD) + " |" for name, r in rows)
    halves = judge.halves()
    return contents.text.format(
        files="\n".join(files),
        halves=statistics.mean(halves),
        spread=statistics.stdev(halves),
        table=table,
        header=" | ".join(CARD),
        rule="|".join(["---:"] * len(CARD)),
        times=", ".join(f"{part} {value} s" for part, value in seconds.items()),
        seeds=EVALUATION_SEEDS,
    )


def _preferences(scorer: PromptScore, held_out: Labelled, backbone: str) -> str:
    """Returns how often a scorer reads the label of held-out images, and scores them above worse ones."""
    images, labels = held_out
    cosines = scorer.encoder.encode_images(images) @ scorer.texts.T
    own = cosines.gather(1, labels[:, None])[:, 0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        half = torch.full((len(images),), 0.5)
        others = like(held_out, (labels + 1) % len(scorer.texts))
        worse = {
            kind: corrupt(images, others, torch.full_like(labels, i), half)
            for i, kind in enumerate(CORRUPTIONS)
        }
        samples = random_schedules(backbone, torch.Generator().manual_seed(1), num_images=1024)
        worse["MaskGIT"] = like(samples, labels)
    beaten = {kind: (own > scorer(other, labels)).float().mean() for kind, other in worse.items()}
    pairs = ", ".join(f"{kind} {share:.0%}" for kind, share in beaten.items())
    right = (cosines.argmax(1) == labels).float().mean()
    return f"{right:.1%} of {len(labels)} held-out labels read; prefers them to their like with {pairs}"


def _generated(folder: Path, env_id: str, num_steps: int | None, off: bool) -> list[dict[str, float]]:
    """Returns the metrics of each evaluation seed under the published schedule, with or without its guidance."""
    kwargs: dict[str, Any] = {"backbone": str(folder), "num_steps": num_steps, "schedule": PUBLISHED}
    kwargs["action_mode"] = "physical"
    evaluator = Evaluator(env_id, kwargs, NUM_IMAGES)
    params = schedule_actions(evaluator.env).params
    schedule = handcrafted(params)
    if off:
        schedule[:, [param.name for param in params].index("guidance_weight")] = 0
    actor = schedule_actor(schedule)
    return [evaluator(actor, first_seed(k, NUM_IMAGES)).metrics for k in range(EVALUATION_SEEDS)]


def _cell(results: list[dict[str, float]], metric: str) -> str:
    values = [result[metric] for result in results]
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"
