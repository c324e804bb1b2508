"""Held-out evaluation of a policy: fixed seeds, balanced labels, a judge that no reward uses."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import torch

from genenv.checkpoints import torch_device
from genenv.metrics.cost import flops_per_image
from genenv.metrics.intervals import Interval, student
from genenv.metrics.judge import Judge, Measurement, check_number
from genenv.progress import counting, progress
from genenv.protocols import Actor
from genenv.registration import defaults
from genenv.rng import MAX_SEED, BatchRng, Stream
from genenv.rollout import Episode, generate
from genenv.tiers import tier_of
from genenv.vector_env import unwrapped
from genenv.wrappers.vector.ema_action_smoothing import smoothing_of

LABEL_PLAN = "cycle"
"""Seed modulo the number of classes: consecutive seeds are balanced."""
KEPT_IMAGES = 2000
"""Images, at most, that an evaluation gives back: the first ones, in whole batches."""
NO_JUDGE = "none"
"""The protocol of images that nobody has judged."""
SURPLUS = 2**32
"""Seeds that are left free behind the last repetition: a last batch may be larger than what is left of its images."""
COUNTED_IMAGES = 8
"""Images over which floating point operations are counted."""


def first_seed(repetition: int, num_images: int) -> int:
    """Returns the first seed of a repetition; repetitions of as many images share none.

    As many as have room below 2^63 are counted; those beyond have the seeds of the first ones again.
    """
    return repetition % ((MAX_SEED - SURPLUS) // num_images) * num_images


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What a policy's images are worth, and where the numbers come from.

    Attributes:
        metrics: those of `genenv.metrics.judge.Measurement.metrics`.
        episode: the first `KEPT_IMAGES` images and how they were made, without observations.
        protocol: how images became features; numbers of different protocols cannot be compared.
        judge_sha256: of the judge's weights.
        reference_sha256: of the file of the real images' statistics.
        num_images: images of each repetition.
        label_plan: `LABEL_PLAN`.
        seeds: first and last, of the held-out stream.
        intervals: {metric: 95 % interval}, where one was asked for and can be told.
        nfe: network evaluations an image, None where the generator does not count them.
        images_per_second: generated and judged.
        class_accuracy: the accuracy of each class, where the judge knows the labels.
        repetitions: on images of their own; more than one: the metrics are means over them.
    """

    metrics: dict[str, float]
    episode: Episode
    protocol: str
    judge_sha256: str
    reference_sha256: str
    num_images: int
    label_plan: str
    seeds: tuple[int, int]
    intervals: dict[str, Interval]
    nfe: float | None
    images_per_second: float
    class_accuracy: list[float]
    repetitions: int = 1

    def record(self) -> dict[str, Any]:
        """Returns everything but the episode, for JSON."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if name != "episode"}


def pool(evaluations: Sequence[Evaluation]) -> Evaluation:
    """Returns repetitions as one evaluation: mean metrics with Student's intervals; a single one as it is."""
    first, last = evaluations[0], evaluations[-1]
    if len(evaluations) == 1:
        return first
    values = {name: [e.metrics[name] for e in evaluations] for name in first.metrics}
    spent = [e.nfe for e in evaluations if e.nfe is not None]
    return dataclasses.replace(
        first,
        metrics={name: statistics.fmean(each) for name, each in values.items()},
        intervals={name: student(each) for name, each in values.items()},
        seeds=(first.seeds[0], last.seeds[1]),
        nfe=statistics.fmean(spent) if spent else None,
        images_per_second=statistics.harmonic_mean([e.images_per_second for e in evaluations]),
        class_accuracy=[
            statistics.fmean(each) for each in zip(*(e.class_accuracy for e in evaluations), strict=True)
        ],
        repetitions=len(evaluations),
    )


class Evaluator:
    """Plays policies on held-out seeds and judges the images; keeps its environment and judge between calls.

    Images are generated and judged batch by batch, so memory does not grow with their number.

    Args:
        env_id: a registered id, or "module:id".
        env_kwargs: what the policy was trained with; contexts, reward and autoreset are set here.
        num_images: images for each evaluation.
        batch_size: images at once.
        protocol: of the judge, by default the backbone's own; see `genenv.metrics.judge.Judge`.
        needs_judge: whether a backbone whose tier has no judge is refused; where it is not, its images have no metrics.

    Raises:
        ValueError: if there is no such id, or too few or many images.
    """

    def __init__(
        self,
        env_id: str,
        env_kwargs: Mapping[str, Any] | None = None,
        num_images: int = 2000,
        batch_size: int = 250,
        protocol: str | None = None,
        needs_judge: bool = True,
    ):
        kwargs = defaults(env_id) | dict(env_kwargs or {})
        kwargs |= {"contexts": LABEL_PLAN, "reward": "none", "autoreset_mode": "Disabled", "output": "torch"}
        if num_images > MAX_SEED - SURPLUS:
            raise ValueError(
                f"num_images must be at most {MAX_SEED - SURPLUS}, one seed each, got {num_images}"
            )
        self.num_images = num_images
        self.backbone: str = kwargs["backbone"]
        device = torch_device(str(kwargs.get("device", "cpu")))
        self._judge: Judge | None = None
        if needs_judge or protocol is not None or tier_of(self.backbone).judges:
            # Before the environment: released generators are slow to load.
            self._judge = Judge(self.backbone, protocol, device)
            check_number(self._judge.extractor, num_images)
        self.env = gym.make_vec(env_id, num_envs=min(batch_size, num_images), **kwargs)

    def __call__(
        self,
        actor: Actor,
        seed: int = 0,
        *,
        intervals: bool = False,
        progress: Callable[[int], object] | None = None,
    ) -> Evaluation:
        """Returns the evaluation of an actor on the held-out seeds seed ... seed + num_images - 1.

        Args:
            actor: maps observations to actions (N, ...).
            seed: of the first image.
            intervals: resample the images for intervals, which takes as long as judging some thousand.
            progress: called with the number of images of every batch.
        """
        started = time.perf_counter()
        extractor = None if self._judge is None else self._judge.extractor
        measurement = None if extractor is None else Measurement(extractor, self.num_images)
        kept, spent = [], torch.zeros((), dtype=torch.float64, device=unwrapped(self.env).device)
        for start in range(0, self.num_images, self.env.num_envs):
            size = min(self.env.num_envs, self.num_images - start)
            batch = generate(self.env, actor, size, seed + start, Stream.HELD_OUT)
            if measurement is not None:
                measurement.update(batch.images, batch.context)
            if start + size <= KEPT_IMAGES or not kept:
                kept.append(batch)
            spent += batch.diagnostics["nfe"][-1].sum() if "nfe" in batch.diagnostics else torch.nan
            if progress is not None:
                progress(size)
        nfe = spent.item() / self.num_images  # waits for the device
        seconds = time.perf_counter() - started
        metrics = {} if measurement is None else measurement.metrics()
        return Evaluation(
            metrics=metrics,
            episode=Episode.concatenate(kept),
            protocol=NO_JUDGE if extractor is None else extractor.protocol,
            judge_sha256="" if extractor is None else extractor.sha256,
            reference_sha256="" if extractor is None else extractor.reference.sha256,
            num_images=self.num_images,
            label_plan=LABEL_PLAN,
            seeds=(seed, seed + self.num_images - 1),
            intervals=measurement.intervals(metrics) if intervals and measurement is not None else {},
            nfe=None if math.isnan(nfe) else nfe,
            images_per_second=self.num_images / seconds,
            class_accuracy=[] if measurement is None else measurement.class_accuracy(),
        )

    @property
    def judge(self) -> Judge:
        """What judges the images; ValueError where the backbone's tier has no judge."""
        return Judge(self.backbone) if self._judge is None else self._judge  # the first says so

    def floor(self) -> dict[str, float]:
        """Returns what real images reach among themselves, as of `genenv.metrics.judge.Judge.floor`."""
        return {} if self._judge is None else self._judge.floor()

    def repetition(self, actor: Actor, seed: int, what: str, *, intervals: bool = False) -> Evaluation:
        """Returns the evaluation on the held-out images of a repetition, showing how far it has come.

        Args:
            actor: maps observations to actions (N, ...).
            seed: of the repetition; see `first_seed`.
            what: is evaluated.
            intervals: see a call.
        """
        total = self.num_images
        with progress(f"held-out images of {what}") as report:
            return self(actor, first_seed(seed, total), intervals=intervals, progress=counting(report, total))

    def flops(self, evaluation: Evaluation) -> float:
        """Returns the floating point operations an image, of the generator alone: see `genenv.metrics.cost`."""
        episode, first, inner = (
            evaluation.episode.first(COUNTED_IMAGES),
            evaluation.seeds[0],
            unwrapped(self.env),
        )
        seeds = torch.arange(first, first + len(episode.context), device=episode.context.device)
        actions = episode.actions
        for wrapper in smoothing_of(self.env):
            actions = wrapper.smoothed(actions)
        commands = [inner.actions(action, t) for t, action in enumerate(actions)]
        rng = BatchRng(seeds, stream=Stream.HELD_OUT)
        return flops_per_image(inner.sampler, commands, episode.context, rng)


def evaluate(
    env_id: str,
    actor: Actor,
    env_kwargs: Mapping[str, Any] | None = None,
    num_images: int = 2000,
    seed: int = 0,
) -> Evaluation:
    """Returns the held-out evaluation of an actor: the one-call form of `Evaluator`."""
    return Evaluator(env_id, env_kwargs, num_images)(actor, seed)
