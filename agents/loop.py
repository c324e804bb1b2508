"""The loop of every agent: iterations with a log, evaluations and checkpoints, which may stop and go on at any time."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from agents import processes
from agents.console import cell, say
from agents.runs import Restorable, Run
from genenv.evaluation import Evaluation
from genenv.progress import ignore, progress


class Diverged(ValueError):
    """Training has left the finite numbers; the last checkpoint has not."""


class Learner(Restorable, Protocol):
    """What `learn` repeats.

    Attributes:
        finished: whether there is nothing more to learn, before the last iteration is reached.
    """

    @property
    def finished(self) -> bool: ...  # noqa: D102

    def step(self) -> dict[str, float]:
        """Runs one iteration, counts it in `iteration`, and returns what is logged, "iteration" among it."""
        ...


class Stateful(Protocol):
    """A part of a learner that training changes: a network, an optimiser, a reward."""

    def state_dict(self) -> dict[str, Any]: ...  # noqa: D102
    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...  # noqa: D102


class Parts:
    """A learner's state: how far it has come, and that of its parts.

    Attributes:
        iteration: iterations done.
        images: generated for training so far; the images' random streams follow from it.
        seconds: spent so far.
    """

    def __init__(self):
        self.iteration, self.images, self.seconds = 0, 0, 0.0

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to learn; an agent of its own mind says so."""
        return False

    @property
    def parts(self) -> dict[str, Stateful | torch.Generator | None]:
        """What training changes, by name; None for what this run does not have."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns all that an exact continuation needs."""
        state: dict[str, Any] = {
            "iteration": self.iteration,
            "images": self.images,
            "seconds": self.seconds,
        }
        for name, part in self.parts.items():
            if isinstance(part, torch.Generator):
                state[name] = part.get_state()
            else:
                state[name] = None if part is None else part.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.iteration, self.images, self.seconds = (state[n] for n in ("iteration", "images", "seconds"))
        for name, part in self.parts.items():
            if isinstance(part, torch.Generator):
                part.set_state(state[name])
            elif part is not None:
                part.load_state_dict(state[name])


def learn(
    learner: Learner,
    run: Run,
    evaluate: Callable[[], Evaluation],
    iterations: int,
    eval_every: int,
    save_every: int,
) -> Evaluation | None:
    """Runs a learner up to a number of iterations, or until it has finished, and returns its last evaluation.

    In processes that do not evaluate that is None.

    Args:
        learner: where it stands.
        run: gets a record of each iteration, and the checkpoints.
        evaluate: measures the learner as it is, in the first process alone.
        iterations: of the whole run.
        eval_every: iterations between evaluations; there is one after the last.
        save_every: iterations between checkpoints, likewise.

    Raises:
        Diverged: if a number of a record, or of the learner's state, is not finite; the last checkpoint is kept.
    """
    learned, shown = None, ""
    with progress(run.config.agent) if processes.is_first() else contextlib.nullcontext(ignore) as report:
        while learner.iteration < iterations and not learner.finished:
            record = _finite_step(learner, run)
            last = learner.iteration == iterations or learner.finished
            if processes.is_first() and (last or learner.iteration % eval_every == 0):
                learned = evaluate()
                record |= {f"held_out/{name}": value for name, value in learned.metrics.items()}
                shown = held_out(learned.metrics)
                if shown and not sys.stderr.isatty():  # the bar shows it elsewhere
                    say(f"iteration {learner.iteration} of {iterations}: {shown}")
            run.record(record)
            if last or learner.iteration % save_every == 0:
                run.save(learner)
            report(learner.iteration, iterations, f"reward {cell(record, 'reward')}  {shown}".rstrip())
    return evaluate() if learned is None and processes.is_first() else learned


def held_out(metrics: Mapping[str, float]) -> str:
    """Returns the metrics that are shown while a run goes on; the reward where nobody judges the images."""
    if "fid" not in metrics:
        return f"held-out reward {cell(metrics, 'reward')}" if "reward" in metrics else ""
    return (
        f"held-out FID {cell(metrics, 'fid', '.2f')}, recall {cell(metrics, 'recall')}, "
        f"accuracy {cell(metrics, 'accuracy', '.1%')}"
    )


def _finite_step(learner: Learner, run: Run) -> dict[str, float]:
    """Runs an iteration; nothing that is not finite comes out of it."""
    number = learner.iteration + 1
    remedy = f"the last checkpoint of {run.out} is kept; lower the learning rate in a new run"
    try:
        record = learner.step()
        check_finite(record)
        check_finite(dict(_tensors(learner.state_dict())))
    except Diverged as error:
        raise Diverged(f"iteration {number}: {error}; {remedy}") from None
    return record


def check_finite(values: Mapping[str, float | Tensor]) -> None:
    """Raises `Diverged` for the first value that is not finite, by its name."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            if not bool(value.isfinite().all()):
                raise Diverged(f"{name} holds numbers that are not finite")
        elif not math.isfinite(value):
            raise Diverged(f"{name} is {value}")


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yields (name, tensor) of the floating point tensors in nested dictionaries."""
    if isinstance(state, dict):
        for key, value in state.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, Tensor) and state.is_floating_point():
        yield name, state
