"""The command line of an agent: where its run is, and every field of its configuration."""

from __future__ import annotations

import dataclasses
import inspect
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import tyro

from agents import processes
from agents.results import RunResult, print_result
from agents.runs import RunConfig, read_config
from genenv.console import exit_status

C = TypeVar("C", bound=RunConfig)


@dataclasses.dataclass(frozen=True)
class Where:
    """Which run."""

    preset: str | None = None
    """Named configuration to start from."""
    out: Path | None = None
    """Directory of a new run."""
    resume: Path | None = None
    """Directory of a run to continue, exactly as if it had never stopped, under its configuration; a higher
    `--num-iterations` goes on from its end."""
    trust_modules: bool = False
    """Let the configuration of that directory name Python modules, whose code then runs."""


def main(
    config: type[C],
    presets: Mapping[str, C],
    train: Callable[[C, Path, bool], RunResult | None],
    arguments: list[str] | None = None,
) -> None:
    """Trains as the command line says.

    Args:
        config: class of the agent's configuration; the docstring of its module is the help.
        presets: {name: configuration}; the first one is the default.
        train: (configuration, directory, whether to resume) -> result, None in processes that only help.
        arguments: in place of those of the process.
    """
    out = Path("runs") / config.agent

    def work() -> None:
        nonlocal out
        where = tyro.cli(Where, args=arguments, return_unknown_args=True, add_help=False)[0]
        default = _default(where, config, presets)
        launch = dataclasses.make_dataclass(
            "Launch",
            [("config", tyro.conf.OmitArgPrefixes[config])],
            bases=(Where,),
            frozen=True,
            kw_only=True,
        )
        text = f"{inspect.getdoc(inspect.getmodule(config))}\n\nPresets: {', '.join(presets)}."
        chosen = tyro.cli(launch, default=launch(config=default), args=arguments, description=text).config
        out = where.resume or where.out or out
        if where.resume is not None:
            _check_continuation(default, chosen)
        processes.start()
        result = train(chosen, out, where.resume is not None)
        if result is not None:
            print_result(result)

    def left() -> str:
        if not (out / "checkpoint.pt").is_file():
            return "; nothing was saved"
        return f"; continue with: {shlex.join(['python', '-m', program, '--resume', str(out)])}"

    program = f"agents.{config.agent}"
    status = exit_status(work, program, left)
    if status:
        raise SystemExit(status)


def _default(where: Where, config: type[C], presets: Mapping[str, C]) -> C:
    """Returns the configuration that the other arguments change: of a preset, or of the run to be continued."""
    if where.resume is not None:
        for name in ("preset", "out"):
            if getattr(where, name) is not None:
                raise ValueError(f"--{name} is for a new run, and --resume {where.resume} continues one")
        return read_config(config, where.resume, where.trust_modules)
    name = where.preset or next(iter(presets))
    if name not in presets:
        raise ValueError(f"preset must be one of {', '.join(presets)}, got {name!r}")
    return presets[name]


def _check_continuation(saved: RunConfig, config: RunConfig) -> None:
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        before, after = getattr(saved, field.name), getattr(config, field.name)
        if before != after and field.name not in config.resumable:
            raise ValueError(
                f"{field.name} of a run that is continued must stay {before!r}, got {after!r}; "
                f"only {', '.join(config.resumable)} may change"
            )
