"""The command `genenv`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import importlib.util
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

import genenv

if TYPE_CHECKING:
    from genenv.evaluation import Evaluation, Evaluator

DEFAULT_ID = "AdaGen/MaskGIT-v0"
USER_ERRORS = (ValueError, OSError, ImportError, gym.error.Error)
"""What a user's mistake raises: every command tells it in one line, and anything else with its traceback."""


class CommandError(ValueError):
    """A command cannot do what it was asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit status: 0, 1 where a check failed, 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except USER_ERRORS as error:
        print(f"genenv {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"genenv {options.command}: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genenv", description=(genenv.__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"genenv {genenv.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help_: str, *, env_id: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run)
        if env_id:
            sub.add_argument("env_id", nargs="?", default=DEFAULT_ID, metavar="ENV_ID")
            sub.add_argument("--backbone", help="generator weights, the id's own by default")
            sub.add_argument("--num-steps", type=int, help="generation steps of each image")
        return sub

    command("list", _list, "List the environments, their action parameters, weights and rewards.")

    command("check", _check, "Check that an environment keeps the suite's promises.", env_id=True)

    sub = command("evaluate", _evaluate, "Measure a policy on held-out seeds.", env_id=True)
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--static", action="store_true", help="the hand-crafted schedule (default)")
    which.add_argument(
        "--policy", metavar="MODULE:FUNCTION", help="loader of a trained policy, given the folder of --run"
    )
    sub.add_argument("--run", type=Path, dest="run_dir", metavar="RUN_DIR", help="folder of a training run")
    sub.add_argument("--num-images", type=int, default=2000, help="images of a repetition (default 2000)")
    sub.add_argument(
        "--repetitions", type=int, default=1, help="evaluations with images of their own (default 1)"
    )
    sub.add_argument("--batch-size", type=int, default=250, help="images at once (default 250)")
    sub.add_argument("--device", help="where the generator and the policy run (default cpu)")
    sub.add_argument("--protocol", help="of the judge of a released generator: torch-fidelity or adagen")
    sub.add_argument(
        "--clip-score",
        action="store_true",
        help="also the mean cosine of images and their class's prompt, of at most 2,000 images",
    )
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")

    sub = command("bench", _bench, "Measure speed beside the bare generator.", env_id=True)
    sub.add_argument("--device", default="cpu")
    sub.add_argument("--dtype", help="of the generator's network: float32, bfloat16 or float16")
    sub.add_argument(
        "--num-images", type=int, nargs="+", metavar="N", help="images at once, in place of the usual numbers"
    )
    sub.add_argument("--threads", type=int, help="CPU threads of torch")
    sub.add_argument("--repeats", type=int, default=9, help="timings of each number (default 9)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")

    sub = command("play", _play, "Draw hand-crafted episodes as a film strip.", env_id=True)
    sub.add_argument("--out", type=Path, default=Path("film_strip.png"))
    sub.add_argument("--num-images", type=int, default=8)
    sub.add_argument("--seed", type=int, default=0)

    zoo = command("zoo", None, "Rebuild the shipped generators.").add_subparsers(
        dest="action", required=True, metavar="ACTION"
    )
    sub = zoo.add_parser("build", help="train the networks of a backbone")
    sub.set_defaults(run=_zoo_build)
    sub.add_argument("backbone", choices=["digits"])
    default = Path("zoo/digits")
    sub.add_argument("--out", type=Path, default=default, help=f"folder to write to (default {default})")
    sub.add_argument("--only", metavar="PART", help="train this network alone")

    sub = command("report", _report, "Write report.html of a training run.")
    sub.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    return parser


def _list(options: argparse.Namespace) -> int:
    from genenv.registration import defaults
    from genenv.rewards import REWARDS
    from genenv.rollout import schedule_actions, unwrapped
    from genenv.tiers import backbones_with, licences

    for env_id in genenv.env_ids():
        inner = unwrapped(gym.make_vec(env_id, num_envs=1, reward="none"))
        parts = importlib.import_module(defaults(env_id)["sampler"].partition(":")[0]).PARTS
        print(env_id)
        rows = [
            ("action", ", ".join(param.name for param in schedule_actions(inner).params)),
            ("observation", ", ".join([*inner.sampler.fields, "step", "context", "prev_action"])),
            ("decisions", str(inner.sampler.horizon)),
            ("rewards", ", ".join(["none", "default", *REWARDS])),
            *((f"weights of {name}", _in_words(licences(name))) for name in backbones_with(parts)),
        ]
        _print_table(rows, indent=2)
    return 0


def _check(options: argparse.Namespace) -> int:
    from genenv.check import check

    failed = False
    for promise, found in check(_known(options.env_id), **_env_kwargs(options)):
        print(f"{'ok  ' if found is None else 'FAIL'} {promise}{'' if found is None else f': {found}'}")
        failed |= found is not None
    return int(failed)


def _evaluate(options: argparse.Namespace) -> int:
    from genenv.checkpoints import write_text
    from genenv.evaluation import Evaluator, first_seed, pool

    for name in ("repetitions", "batch_size"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise CommandError(f"{flag} must be at least 1, got {getattr(options, name)}")
    if (options.policy is None) != (options.run_dir is None):
        raise CommandError("--policy and --run belong together: the loader and the folder that it loads")
    env_id, env_kwargs = _known(options.env_id), _env_kwargs(options)
    if options.device is not None:
        env_kwargs["device"] = options.device
    actor: Any = None
    if options.policy is not None:
        place = {} if options.device is None else {"device": options.device}
        loader = _load(options.policy)
        if not _takes(loader, options.run_dir, **place):
            called = "(run_dir, device=...)" if place else "(run_dir)"
            raise CommandError(f"--policy must name a function that is called as {called}, got {loader!r}")
        actor = loader(options.run_dir, **place)
        trained_on = getattr(actor, "env_id", env_id)
        if trained_on != env_id:
            raise CommandError(f"the policy of {options.run_dir} was trained on {trained_on}, got {env_id}")
        env_kwargs = dict(getattr(actor, "env_kwargs", {})) | env_kwargs
    evaluator = Evaluator(env_id, env_kwargs, options.num_images, options.batch_size, options.protocol)
    judges = _clip_judge(evaluator) if options.clip_score else None
    if actor is None:
        from genenv.rollout import static_actor

        actor = static_actor(evaluator.env)
    runs, flops = [], 0.0
    with _progress_bar("images", options.repetitions * options.num_images) as advance:
        for k in range(options.repetitions):
            run = evaluator(
                actor,
                first_seed(k, options.num_images),
                intervals=options.repetitions == 1,
                progress=advance,
            )
            flops = flops or evaluator.flops(run)
            if judges is not None:
                run = dataclasses.replace(run, metrics=run.metrics | {"clip_score": judges(run)})
            runs.append(
                dataclasses.replace(run, episode=run.episode.first(0))
            )  # the images are not needed again
    found = pool(runs)
    _print_evaluation(found, flops)
    if options.json:
        record = {
            "env_id": env_id,
            "env_kwargs": {"backbone": evaluator.backbone} | env_kwargs,
            "policy": options.policy,
            "run": options.run_dir and str(options.run_dir),
            "genenv": genenv.__version__,
            **found.record(),
            "flops": flops,
            "runs": [run.metrics for run in runs],
        }
        write_text(options.json, json.dumps(record, indent=2) + "\n")
    return 0


def _clip_judge(evaluator: Evaluator) -> Callable[[Evaluation], float]:
    """Returns what gives the CLIP score of an evaluation's kept images; loads CLIP before anything is generated."""
    from genenv.metrics.clip_score import clip_score
    from genenv.prompts import prompts
    from genenv.rewards.clip import make_clip
    from genenv.rollout import unwrapped

    encoder = make_clip(evaluator.backbone, str(unwrapped(evaluator.env).device)).encoder
    texts = prompts(evaluator.backbone)
    return lambda run: clip_score(encoder, texts, run.episode.images, run.episode.context)


def _print_evaluation(found: Evaluation, flops: float) -> None:
    how = "resampled images" if found.repetitions == 1 else f"{found.repetitions} repetitions"
    rows = [("metric", "mean" if found.repetitions > 1 else "value", f"95 % interval ({how})")]
    for name, value in found.metrics.items():
        ends = found.intervals.get(name)
        rows.append((name, f"{value:.3f}", f"{ends[0]:.3f} to {ends[1]:.3f}" if ends else ""))
    _print_table(rows)
    repeated = f"{found.repetitions} x " if found.repetitions > 1 else ""
    calls = "" if found.nfe is None else f"{found.nfe:.1f} network evaluations, "
    each = " ".join(f"{accuracy:.1%}" for accuracy in found.class_accuracy)
    classes = [("accuracy", f"of each class: {each}")] if each else []
    print()
    _print_table(
        [
            ("protocol", found.protocol),
            ("judge", f"sha256 {found.judge_sha256}"),
            ("reference", f"sha256 {found.reference_sha256}"),
            (
                "images",
                f"{repeated}{found.num_images:,}, held-out seeds {found.seeds[0]} to {found.seeds[1]}",
            ),
            ("labels", f"{found.label_plan}: balanced"),
            *classes,
            ("cost", f"{calls}{flops / 1e9:.3g} GFLOPs an image (multiply and add: 2)"),
            ("speed", f"{found.images_per_second:,.1f} images/s, judged"),
        ]
    )


@contextlib.contextmanager
def _progress_bar(what: str, total: int) -> Iterator[Callable[[int], object] | None]:
    """Shows a bar where somebody watches and rich is installed; gives what advances it."""
    if not sys.stderr.isatty() or importlib.util.find_spec("rich") is None:
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        job = bar.add_task(what, total=total)
        yield lambda count: bar.advance(job, count)


def _bench(options: argparse.Namespace) -> int:
    import torch

    from genenv.bench import BATCH_SIZES, LOOP_ENVS, RATIO_ENVS, measure
    from genenv.checkpoints import write_text

    if options.threads is not None:
        if options.threads < 1:
            raise CommandError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    env_kwargs = _env_kwargs(options)
    if options.dtype is not None:
        env_kwargs["dtype"] = options.dtype
    batch_sizes = options.num_images or BATCH_SIZES
    result = measure(_known(options.env_id), options.device, options.repeats, batch_sizes, **env_kwargs)
    print(f"{result.env_id} on {result.device}, {result.threads} CPU threads, {RATIO_ENVS} images at once")
    rows = [
        ("environment", f"{result.env_steps_per_second:,.0f} steps/s"),
        ("bare sampler loop", f"{result.sampler_steps_per_second:,.0f} steps/s"),
        ("ratio", f"{result.ratio:.3f}"),
        ("overhead over the bare network calls", f"{result.overhead:.1%}"),
    ]
    for title, speedup in (
        ("the released loop", result.closed_loop_speedup),
        ("separate calls", result.separate_loop_speedup),
    ):
        if speedup is not None:
            rows.append((f"speed over {title}, {LOOP_ENVS} images", f"{speedup:.3f}"))
    _print_table(rows)
    columns = {
        path: {n: f"{speed:,.1f}" for n, speed in speeds.items()}
        for path, speeds in result.images_per_second.items()
    }
    if result.peak_memory:
        columns["peak memory"] = {n: f"{size / 2**30:.2f} GiB" for n, size in result.peak_memory.items()}
    print("\nimages/s")
    table = [(str(n), *(column[n] for column in columns.values())) for n in batch_sizes]
    _print_table([("images at once", *columns), *table])
    if options.json:
        write_text(options.json, json.dumps(dataclasses.asdict(result), indent=2) + "\n")
    return 0


def _play(options: argparse.Namespace) -> int:
    import torch

    from genenv.bench import sampler_states
    from genenv.viz.plots import save_film_strip

    env: Any = gym.make_vec(
        _known(options.env_id), num_envs=options.num_images, reward="none", **_env_kwargs(options)
    )
    sampler = env.unwrapped.sampler
    images, undecided = [], []
    with torch.no_grad():
        for state in sampler_states(env, options.seed):
            images.append(sampler.decode(state))
            undecided.append(sampler.undecided(state))
    save_film_strip(options.out, torch.stack(images), torch.stack(undecided))
    print(options.out)
    return 0


def _zoo_build(options: argparse.Namespace) -> int:
    from genenv.zoo import digits

    out = options.out.absolute()  # a folder called "digits" is not the shipped backbone
    digits.build(out, options.only, progress=_progress_lines())
    print(options.out)
    return 0


def _progress_lines(seconds: float = 5.0) -> Callable[[str, int, int, float], None]:
    """Returns what prints a part's progress at its first and last step, and every few seconds between."""
    printed = 0.0

    def report(part: str, step: int, num_steps: int, loss: float) -> None:
        nonlocal printed
        now = time.monotonic()
        if step in (1, num_steps) or now - printed >= seconds:
            print(f"{part}: step {step} of {num_steps}, loss {loss:.4f}", flush=True)
            printed = now

    return report


def _report(options: argparse.Namespace) -> int:
    from genenv.viz.report import write_report

    if not options.run_dir.is_dir():
        raise CommandError(f"{options.run_dir} is not the folder of a run")
    write_report(options.run_dir, options.run_dir.resolve().name)
    print(options.run_dir / "report.html")
    return 0


def _known(env_id: str) -> str:
    """Returns the id, or raises the error that names the ids there are."""
    from genenv.registration import defaults

    defaults(env_id)
    return env_id


def _env_kwargs(options: argparse.Namespace) -> dict[str, Any]:
    given = {"backbone": options.backbone, "num_steps": options.num_steps}
    return {name: value for name, value in given.items() if value is not None}


def _load(path: str) -> Any:
    """Returns what "module:attribute" names; modules of the current folder count."""
    module, separator, attribute = path.partition(":")
    if not separator:
        raise CommandError(f"--policy must be MODULE:FUNCTION, got {path!r}")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise CommandError(f"--policy: module {module} has no {attribute!r}") from None
    finally:
        sys.path.remove("")


def _takes(function: Any, *args: Any, **kwargs: Any) -> bool:
    """Returns whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def _in_words(licences: dict[str, str]) -> str:
    """Returns "licence (file, file); licence (file)"."""
    files: dict[str, list[str]] = {}
    for file, licence in licences.items():
        files.setdefault(licence, []).append(file)
    return "; ".join(f"{licence} ({', '.join(names)})" for licence, names in files.items())


def _print_table(rows: Iterable[tuple[str, ...]], indent: int = 0) -> None:
    """Prints rows with aligned columns."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" " * indent + "  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
