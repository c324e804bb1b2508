"""The directory of a run: what it holds, who may write it, and how it survives a crash.

config.json        the configuration          metrics.jsonl   one line an iteration, and the same in tensorboard/
checkpoint.pt      all that training changes  handcrafted.pt  what the run is compared with; other.pt alike
summary.json, report.html and pictures, once it is done       lock            held by the process that writes
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import math
import os
import pickle
import struct
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from filelock import FileLock, Timeout
from torch.utils.tensorboard import SummaryWriter

import genenv
from agents import processes
from agents.config import as_json, command, from_json
from genenv.checkpoints import CheckpointError, replacing, write_text
from genenv.evaluation import Evaluation
from genenv.json_text import parse_object
from genenv.models.gaussian_mixture import is_factory
from genenv.rollout import PER_DECISION, Episode
from genenv.tiers import RANDOM
from genenv.viz.report import read_records

REWARD_FIELDS = ("reward",)
"""Fields of any agent's configuration that name rewards."""
RESUMABLE = ("name", "num_iterations", "device", "eval_interval", "checkpoint_interval")
"""Fields that may change when a run of any agent is continued."""
BEFORE = "handcrafted"
"""The evaluation of what a run starts from."""
DIGEST = 64
"""Characters of a SHA-256 in hexadecimal."""


class RunConfig(Protocol):
    """What the shared parts ask of an agent's configuration, which is a frozen dataclass.

    Attributes:
        agent: its module's name.
        resumable: fields that may change when a run is continued.
        reward_fields: fields that name rewards.
        env_id, name, reward, seed, num_iterations, eval_images: as in `agents.adagen.Config`.
    """

    agent: ClassVar[str]
    resumable: ClassVar[tuple[str, ...]]
    reward_fields: ClassVar[tuple[str, ...]]

    @property
    def env_id(self) -> str: ...  # noqa: D102
    @property
    def name(self) -> str | None: ...  # noqa: D102
    @property
    def reward(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def num_iterations(self) -> int: ...  # noqa: D102
    @property
    def eval_images(self) -> int: ...  # noqa: D102

    @property
    def env_kwargs(self) -> dict[str, Any]:
        """What `gymnasium.make_vec` needs so that a policy sees what the run trains on."""
        ...


class Restorable(Protocol):
    """What a checkpoint is of."""

    iteration: int

    def state_dict(self) -> dict[str, Any]:
        """Returns tensors and plain values that restore the object; "iteration" among them."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        ...


C = TypeVar("C", bound=RunConfig)


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Writes tensors and plain values to a file of torch that ends with its own SHA-256.

    The hash is the comment at the end of the zip archive, so that file and hash cannot part. The file is written under
    a temporary name and renamed once it is on the disk.

    Raises:
        OSError: if it cannot be written; the old file stays as it was.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()[:-2] + struct.pack("<H", DIGEST)  # the last entry is the comment's length
    digest = hashlib.sha256(content).hexdigest().encode()
    with replacing(path) as partial:
        partial.write_bytes(content + digest)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Returns what `save_checkpoint` wrote, on the CPU; nothing but tensors and plain values is unpickled.

    Raises:
        CheckpointError: if the file is missing, or not as it was written.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: there is no run to continue or to load")
    content = path.read_bytes()
    if hashlib.sha256(content[:-DIGEST]).hexdigest().encode() != content[-DIGEST:]:
        raise CheckpointError(
            f"{path} is damaged: its content does not have its checksum; restore a copy, or train again"
        )
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} holds more than tensors and plain values: {reason}") from None


def read_config(kind: type[C], run_dir: Path | str, trust_modules: bool = False) -> C:
    """Returns the configuration of a run directory.

    Args:
        kind: its class.
        run_dir: the directory.
        trust_modules: let the file name Python modules, whose code then runs: "module:id" as `env_id`, and
            "module:factory" as a reward or a backbone. Otherwise only registered ids, and rewards and backbones that
            have a name, are taken.

    Raises:
        ValueError: if there is no such file, or it is not such a configuration.
    """
    path = Path(run_dir) / "config.json"
    if not path.is_file():
        raise ValueError(f"{run_dir} is not a run directory: it has no config.json")
    config = from_json(kind, path)
    if not trust_modules:
        module = config.env_id.rpartition(":")[0]
        names = [config.env_id] if module and module not in sys.modules else []
        backbone = str(config.env_kwargs.get("backbone", "")).removeprefix(RANDOM)
        names += [backbone] if is_factory(backbone) else []
        for field in kind.reward_fields:
            names += [reward for reward in reward_names(getattr(config, field)) if ":" in reward]
        for name in names:
            raise ValueError(
                f"{path}: {name!r} would run the code of a module; "
                "if you trust the directory, say so with --trust-modules (trust_modules=True)"
            )
    return config


def reward_names(reward: str) -> list[str]:
    """Returns the names in a configuration's reward: one, or those of a mixture in JSON."""
    return list(reward_spec(reward)) if reward.lstrip().startswith("{") else [reward]


def reward_spec(reward: str) -> str | dict[str, Any]:
    """Returns a configuration's reward as `genenv.rewards.make_reward` takes it: a name, or a mixture's weights."""
    if not reward.lstrip().startswith("{"):
        return reward
    try:
        return parse_object(reward, "it")
    except ValueError as error:
        raise ValueError(f"reward must be a name or a JSON object, got {reward}: {error}") from None


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes an error of the disk one that names what could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} could not be written: {error.strerror or error}") from error


class MetricsLog:
    """metrics.jsonl: one line an iteration; iteration 0 is what there was before training."""

    def __init__(self, run_dir: Path):
        self.run_dir, self.path = run_dir, run_dir / "metrics.jsonl"

    def append(self, record: dict[str, float]) -> None:
        """Adds a line, on the disk when this returns: a checkpoint is never ahead of its log.

        Raises:
            ValueError: if a value is not finite, which nothing would read again.
            OSError: if it cannot be written, naming the file, in which nothing of the line is left.
        """
        for name, value in record.items():
            if not math.isfinite(value):
                raise ValueError(f"{self.path} takes finite numbers, got {name} {value}")
        line = (json.dumps(record) + "\n").encode()
        with _naming(self.path), self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while line:  # a disk that fills up takes a part, and fails at the next one
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise

    def read(self) -> list[dict[str, float]]:
        """Returns all records, none where there is no file; see `genenv.viz.report.read_records`."""
        return read_records(self.run_dir) if self.path.is_file() else []

    def cut_after(self, iteration: int) -> None:
        """Drops what a crashed run logged after its last checkpoint; resuming logs it again.

        Raises:
            ValueError: if the records up to there are not all there.
        """
        kept = [record for record in self.read() if record["iteration"] <= iteration]
        logged = [record["iteration"] for record in kept if record["iteration"] > 0]
        if logged != list(range(1, iteration + 1)):
            raise ValueError(
                f"{self.path} must hold iterations 1 to {iteration}, as the checkpoint does, got "
                f"{len(logged)} of them; restore it, or start anew in another directory"
            )
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Holds a run directory for this process alone; the lock goes with the process, however it ends.

    Raises:
        ValueError: if another process holds it.
    """
    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"{out} is in use by another process; wait for it, or choose another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def check_free(out: Path) -> None:
    """Raises a ValueError if a directory holds a run, or what is left of one, or cannot be made where a file is."""
    for place in (out, *out.parents):
        if place.is_file():
            raise ValueError(f"--out {out} must be a directory, but {place} is a file; choose another --out")
    if (out / "checkpoint.pt").exists():
        raise ValueError(
            f"{out} already holds a run; continue it with --resume {out}, or choose another --out"
        )
    log = out / "metrics.jsonl"
    if log.exists() and log.stat().st_size:
        raise ValueError(f"{log} is left of a run without a checkpoint; remove it, or choose another --out")


@dataclasses.dataclass(frozen=True)
class Run(Generic[C]):
    """An open run directory. Only the first process of a run writes to it.

    Attributes:
        out: the directory.
        config: its configuration.
        log: the metrics of each iteration.
        writer: the same for TensorBoard.
    """

    out: Path
    config: C
    log: MetricsLog
    writer: SummaryWriter | None

    @property
    def command(self) -> str:
        """The command line that makes the run from nothing."""
        return command(self.config.agent, self.config, self.out)

    def record(self, record: dict[str, float]) -> None:
        """Logs an iteration."""
        if self.writer is None:
            return
        self.log.append(record)
        with _naming(self.out / "tensorboard"):
            for name, value in record.items():
                self.writer.add_scalar(name, value, int(record["iteration"]))

    def save(self, learner: Restorable) -> None:
        """Writes the checkpoint."""
        if processes.is_first():
            save_checkpoint(learner.state_dict(), self.out / "checkpoint.pt")

    def evaluated_once(self, evaluate: Callable[[], Evaluation], name: str = BEFORE) -> Evaluation | None:
        """Returns an evaluation that the run is compared with: kept in the directory, and made only if it is not.

        One that is damaged, or of another version or configuration, is made again. That of what the run starts from is
        the record of iteration 0. The images are kept in 8 bits. None in the other ones of several processes.

        Args:
            evaluate: makes it.
            name: of its file.
        """
        if not processes.is_first():
            return None
        path = self.out / f"{name}.pt"
        evaluation = self._kept_evaluation(path)
        if evaluation is None:
            evaluation = in_8_bits(evaluate())
            kept = dataclasses.asdict(evaluation)
            kept["episode"]["images"] = (255 * kept["episode"]["images"]).round().byte()
            save_checkpoint({"task": self._task, "evaluation": kept}, path)
        if name == BEFORE and not self.log.read():
            metrics = {f"held_out/{name}": value for name, value in evaluation.metrics.items()}
            self.record({"iteration": 0, "images": 0, **metrics})
        return evaluation

    @property
    def _task(self) -> str:
        """What an evaluation is of: the version, and what of the configuration stays as it is."""
        config: Any = self.config
        fixed = {k: v for k, v in dataclasses.asdict(config).items() if k not in config.resumable}
        return json.dumps({"genenv": genenv.__version__} | fixed)

    def _kept_evaluation(self, path: Path) -> Evaluation | None:
        """Returns what `evaluated_once` has kept, None where there is nothing that it can have written."""
        try:
            state = load_checkpoint(path)
        except CheckpointError:  # missing or damaged
            return None
        if not isinstance(state, dict) or state.get("task") != self._task:
            return None
        kept: Any = state.get("evaluation")
        if not _fits(kept, Evaluation) or not _is_a_batch(kept["episode"]):
            return None
        images = kept["episode"]["images"].float() / 255
        return Evaluation(**kept | {"episode": Episode(**kept["episode"] | {"images": images})})


def _fits(value: Any, hint: Any) -> bool:
    """Returns whether a value is what a type says; a dataclass is the dictionary of its fields, a float finite."""
    kind, inner = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        named = isinstance(value, dict) and value.keys() == hints.keys()
        return named and all(_fits(value[name], hints[name]) for name in hints)
    if kind in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if kind is dict:
        return isinstance(value, dict) and all(_fits(pair, tuple[inner]) for pair in value.items())
    if kind is list:
        return isinstance(value, list) and all(_fits(entry, inner[0]) for entry in value)
    if kind is tuple:
        return isinstance(value, tuple) and len(value) == len(inner) and all(map(_fits, value, inner))
    return type(value) is hint and (hint is not float or math.isfinite(value))


def _is_a_batch(episode: dict[str, Any]) -> bool:
    """Returns whether the fields of an episode hold 8-bit images, and everything else for as many of them."""
    images = episode["images"]
    if images.dtype != torch.uint8 or images.dim() != 4:
        return False
    for name, entry in episode.items():
        axes = (len(episode["actions"]), len(images)) if name in PER_DECISION else (len(images),)
        tensors = entry.values() if isinstance(entry, dict) else [entry]
        if any(tensor.shape[: len(axes)] != axes for tensor in tensors):
            return False
    return True


def in_8_bits(evaluation: Evaluation) -> Evaluation:
    """Returns an evaluation with its images rounded to the 256 levels of a picture."""
    images = (255 * evaluation.episode.images).round() / 255
    return dataclasses.replace(evaluation, episode=dataclasses.replace(evaluation.episode, images=images))


@contextlib.contextmanager
def open_run(config: C, out: Path, learner: Restorable, resume: bool) -> Iterator[Run[C]]:
    """Yields a run directory: a new one with the learner's first checkpoint, or the learner as it was when it stopped.

    Raises:
        ValueError: if the directory is in use, holds a run already, or has none to continue.
        CheckpointError: if the checkpoint is damaged or another run's.
    """
    with locked(out) if processes.is_first() else contextlib.nullcontext():
        log = MetricsLog(out)
        if resume:
            _restore(learner, out / "checkpoint.pt")
            if learner.iteration > config.num_iterations:
                raise ValueError(
                    f"num_iterations must be at least the {learner.iteration} that {out} has done, "
                    f"got {config.num_iterations}"
                )
        writer = None
        if processes.is_first():
            if resume:
                log.cut_after(learner.iteration)
            else:
                check_free(out)
                (out / f"{BEFORE}.pt").unlink(missing_ok=True)  # of another configuration
                log.path.touch()
            write_text(out / "config.json", as_json(config))
            if not resume:
                save_checkpoint(learner.state_dict(), out / "checkpoint.pt")
            writer = SummaryWriter(str(out / "tensorboard"), purge_step=learner.iteration + 1)
        try:
            yield Run(out, config, log, writer)
        except BaseException:
            if writer is not None:
                with contextlib.suppress(OSError):  # the first error says more
                    writer.close()
            raise
        if writer is not None:
            with _naming(out / "tensorboard"):
                writer.close()


def _restore(learner: Restorable, path: Path) -> None:
    state = load_checkpoint(path)
    try:
        learner.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not of this configuration: {reason}") from None
