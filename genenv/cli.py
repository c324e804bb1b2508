"""The command `genenv`."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium as gym

import genenv
from genenv.console import exit_status
from genenv.registration import DEFAULT_ID

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

    from genenv.evaluation import Evaluation, Evaluator
    from genenv.protocols import Actor


class CommandError(ValueError):
    """A command cannot do what it was asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a subcommand and returns its exit status: 0, 1 where a check failed, 2 for a user's mistake."""
    options = _parser().parse_args(arguments)
    return exit_status(lambda: options.run(options), f"genenv {options.command}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="genenv", description=(genenv.__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"genenv {genenv.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Any, help_: str, *, env_id: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help_, description=help_)
        sub.set_defaults(run=run)
        if env_id:
            sub.add_argument(
                "env_id", nargs="?", default=DEFAULT_ID, metavar="ENV_ID", help="such as my_module:My/Env-v0"
            )
            sub.add_argument("--backbone", help="generator weights, the id's own by default")
            sub.add_argument("--num-steps", type=int, help="generation steps of each image")
            sub.add_argument(
                "--env-kwargs",
                metavar="JSON",
                default="{}",
                help='further keyword arguments of the environment, such as \'{"solver": "heun"}\'',
            )
        return sub

    def policy(sub: argparse.ArgumentParser) -> None:
        which = sub.add_mutually_exclusive_group()
        which.add_argument(
            "--static",
            action="store_true",
            help="the hand-crafted schedule, or the frozen generator where tokens are the actions (default)",
        )
        which.add_argument(
            "--policy",
            metavar="MODULE:FUNCTION",
            help="what gives the actor: function(run_dir) with --run, else function() or function(env)",
        )
        sub.add_argument(
            "--run", type=Path, dest="run_dir", metavar="RUN_DIR", help="folder of a training run"
        )
        sub.add_argument(
            "--trust-modules",
            action="store_true",
            help="let the configuration of that folder name Python modules, whose code then runs",
        )
        sub.add_argument("--device", help="where the generator and the policy run (default cpu)")

    sub = command("list", _list, "List the environments, their action parameters, weights and rewards.")
    sub.add_argument("env_ids", nargs="*", metavar="ENV_ID", help="these alone; MODULE:ID of another package")

    command("check", _check, "Check that an environment keeps the suite's promises.", env_id=True)

    sub = command("evaluate", _evaluate, "Measure a policy on held-out seeds.", env_id=True)
    policy(sub)
    sub.add_argument("--num-images", type=int, default=2000, help="images of a repetition (default 2000)")
    sub.add_argument(
        "--repetitions", type=int, default=1, help="evaluations with images of their own (default 1)"
    )
    sub.add_argument("--batch-size", type=int, default=250, help="images at once (default 250)")
    sub.add_argument("--protocol", help="of the judge of a released generator: torch-fidelity or adagen")
    sub.add_argument(
        "--clip-score",
        action="store_true",
        help="also the mean cosine of images and their class's prompt, of at most 2,000 images",
    )
    sub.add_argument("--name", help="what a scoreboard calls it")
    sub.add_argument(
        "--json", type=Path, metavar="FILE", help="write the numbers as JSON too, after every repetition"
    )

    sub = command("bench", _bench, "Measure speed beside the bare generator.", env_id=True)
    sub.add_argument("--device", help="where the generator runs (default cpu)")
    sub.add_argument("--dtype", help="of the generator's network: float32, bfloat16 or float16")
    sub.add_argument(
        "--num-images", type=int, nargs="+", metavar="N", help="images at once, in place of the usual numbers"
    )
    sub.add_argument("--threads", type=int, help="CPU threads of torch")
    sub.add_argument("--repeats", type=int, default=9, help="timings of each number (default 9)")
    sub.add_argument("--json", type=Path, metavar="FILE", help="write the numbers as JSON too")

    sub = command("play", _play, "Draw episodes of a policy as a film strip.", env_id=True)
    policy(sub)
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

    sub = command(
        "export", _export, "Print a distilled schedule, or write a tuned network, as others take it."
    )
    sub.add_argument(
        "source",
        type=Path,
        metavar="RUN_OR_SCHEDULE",
        help="a schedule.json, or a run's folder with one or with a tuned generator",
    )
    sub.add_argument(
        "--to",
        choices=["diffusers", "json", "llamagen", "taming"],
        default="json",
        help="what `set_timesteps` of diffusers' schedulers takes, or the noise levels (default); a checkpoint of the "
        "code of LlamaGen, or of VQGAN",
    )
    sub.add_argument("--steps", type=int, metavar="K", help="needed where the schedule has several")
    sub.add_argument(
        "--scheduler-config",
        type=Path,
        metavar="FILE",
        help="the model's scheduler_config.json; by default DDPM's linear betas, and no shift",
    )
    sub.add_argument("--out", type=Path, metavar="FILE", help="write it there in place of printing it")

    sub = command("report", _report, "Write report.html of a training run.")
    sub.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    return parser


def _list(options: argparse.Namespace) -> int:
    from genenv.actions import ScheduleActions
    from genenv.registration import defaults
    from genenv.releases import DOWNLOADS
    from genenv.rewards import available
    from genenv.tiers import backbones_with, licences, tiers
    from genenv.vector_env import unwrapped

    for env_id in options.env_ids or genenv.env_ids():
        kwargs = defaults(env_id)
        try:
            inner = unwrapped(gym.make_vec(env_id, num_envs=1, reward="none"))
        except ValueError as error:  # another package's networks may lie anywhere
            print(env_id)
            _print_table([("needs", f"backbone=FOLDER: {error}")], indent=2)
            continue
        module = importlib.import_module(kwargs["sampler"].partition(":")[0])
        if hasattr(module, "backbones"):
            backbones = module.backbones()
        else:
            backbones = backbones_with(module.PARTS) if hasattr(module, "PARTS") else [kwargs["backbone"]]
        actions, space = inner.actions, inner.single_action_space
        names = (
            [param.name for param in actions.params] if isinstance(actions, ScheduleActions) else [str(space)]
        )
        rows = [
            ("action", ", ".join(names)),
            ("observation", ", ".join([*inner.sampler.fields, "step", "context", "prev_action"])),
            ("decisions", str(inner.sampler.horizon)),
            ("backbones", ", ".join(backbones)),
        ]
        print(env_id)
        _print_table(rows, indent=2)
    of_backbones = set()
    for tier in tiers().values():
        shape = " x ".join(map(str, tier.image_shape))
        print(f"\ntier {tier.name}: images of {shape}, {len(tier.class_names):,} classes")
        rows = [("judges", ", ".join(tier.judges) or "none")]
        for name in tier.backbones:
            rows.append((name, f"rewards: {', '.join(['none', *available(name)])}"))
            rows.append(("", f"weights: {_in_words(licences(name))}"))
            of_backbones |= licences(name).keys()
        _print_table(rows, indent=2)
    print("\nother files: judges, rewards, references, policies")
    others = [(each.file, each.licence) for each in DOWNLOADS.values() if each.file not in of_backbones]
    _print_table(others, indent=2)
    return 0


def _check(options: argparse.Namespace) -> int:
    from genenv.check import check

    failed = False
    for promise, found in check(known_id(options.env_id), **_env_kwargs(options)):
        print(f"{'ok  ' if found is None else 'FAIL'} {promise}{'' if found is None else f': {found}'}")
        failed |= found is not None
    return int(failed)


def _evaluate(options: argparse.Namespace) -> int:
    from genenv.checkpoints import write_text
    from genenv.evaluation import Evaluator, first_seed, pool
    from genenv.progress import counting, progress
    from genenv.vector_env import unwrapped

    for name in ("repetitions", "batch_size"):
        if getattr(options, name) < 1:
            flag = "--" + name.replace("_", "-")
            raise CommandError(f"{flag} must be at least 1, got {getattr(options, name)}")
    env_id, env_kwargs, actor_for = _policy(options)
    evaluator = Evaluator(env_id, env_kwargs, options.num_images, options.batch_size, options.protocol)
    judges = _clip_judge(evaluator) if options.clip_score else None
    actor, runs, flops = actor_for(evaluator.env), [], 0.0
    with progress("images") as report:
        advance = counting(report, options.repetitions * options.num_images)
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
            if options.json:
                record = {
                    "name": options.name or _name(options, evaluator.env),
                    "env_id": env_id,
                    "env_kwargs": {"backbone": evaluator.backbone} | env_kwargs,
                    "decisions": unwrapped(evaluator.env).sampler.horizon,
                    "policy": options.policy,
                    "run": options.run_dir and str(options.run_dir),
                    "genenv": genenv.__version__,
                    **pool(runs).record(),
                    "flops": flops,
                    "runs": [run.metrics for run in runs],
                }
                write_text(options.json, json.dumps(record, indent=2) + "\n")
    _print_evaluation(pool(runs), flops)
    return 0


def _name(options: argparse.Namespace, env: VectorEnv) -> str:
    """Returns what a policy is called that nobody named."""
    from genenv.actions import ScheduleActions
    from genenv.vector_env import unwrapped

    if options.policy is None:
        return "hand-crafted" if isinstance(unwrapped(env).actions, ScheduleActions) else "frozen generator"
    return options.policy if options.run_dir is None else options.run_dir.resolve().name


def _policy(
    options: argparse.Namespace,
) -> tuple[str, dict[str, Any], Callable[[VectorEnv], Actor]]:
    """Returns the id, its keyword arguments, and what gives the actor of an environment with them.

    A policy comes from a loader, function(run_dir) or function(), whose actor may say in `env_id` and `env_kwargs`
    what it was trained on, or from function(env). It is told `trust_modules` where it takes that.
    """
    from genenv.rollout import default_actor

    env_id, env_kwargs = known_id(options.env_id), _env_kwargs(options)
    if options.device is not None:
        env_kwargs["device"] = options.device
    if options.policy is None:
        if options.run_dir is not None:
            raise CommandError("--run needs --policy, the function that loads the folder's policy")
        return env_id, env_kwargs, default_actor
    function = _load(options.policy)
    place: dict[str, Any] = {} if options.device is None else {"device": options.device}
    folder = () if options.run_dir is None else (options.run_dir,)
    if not _takes(function, *folder, **place):
        if not folder and _wants_env(function):
            return env_id, env_kwargs, function
        arguments = ", ".join(["run_dir"] * bool(folder) + ["device=..."] * bool(place))
        also = "" if folder else ", or as (env); give --run for one that loads a run"
        raise CommandError(
            f"--policy must name a function that is called as ({arguments}){also}, got {function!r}"
        )
    trust = {"trust_modules": True} if options.trust_modules else {}
    trust = trust if _takes(function, *folder, **place, **trust) else {}
    with _current_folder():  # of the modules that a trusted run names
        actor: Actor = function(*folder, **place, **trust)
    trained_on = getattr(actor, "env_id", env_id)
    if trained_on.rpartition(":")[2] != env_id:
        raise CommandError(
            f"the policy of {options.run_dir or options.policy} was trained on {trained_on}, got {env_id}"
        )
    if not callable(actor):
        raise CommandError(
            f"--policy {options.policy} must give an actor, called with observations, got {actor!r}"
        )
    return env_id, dict(getattr(actor, "env_kwargs", {})) | env_kwargs, lambda env: actor


def _clip_judge(evaluator: Evaluator) -> Callable[[Evaluation], float]:
    """Returns what gives the CLIP score of an evaluation's kept images; loads CLIP before anything is generated."""
    from genenv.metrics.clip_score import clip_score
    from genenv.prompts import prompts
    from genenv.rewards.clip import make_clip
    from genenv.vector_env import unwrapped

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
    calls = "" if found.nfe is None else f"{found.nfe:.1f} network evaluations (guidance counted), "
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


def _bench(options: argparse.Namespace) -> int:
    import torch

    from genenv.bench import BATCH_SIZES, LOOP_ENVS, RATIO_ENVS, measure
    from genenv.checkpoints import write_text
    from genenv.progress import progress

    if options.threads is not None:
        if options.threads < 1:
            raise CommandError(f"--threads must be at least 1, got {options.threads}")
        torch.set_num_threads(options.threads)
    given = {"device": options.device, "dtype": options.dtype}
    env_kwargs = {"device": "cpu"} | _env_kwargs(options)
    env_kwargs |= {name: value for name, value in given.items() if value is not None}
    batch_sizes = options.num_images or BATCH_SIZES
    env_id = known_id(options.env_id)
    with progress("measurements") as report:
        result = measure(
            env_id, repeats=options.repeats, batch_sizes=batch_sizes, report=report, **env_kwargs
        )
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

    from genenv.vector_env import unwrapped
    from genenv.viz.plots import save_film_strip

    env_id, env_kwargs, actor_for = _policy(options)
    env_kwargs |= {"reward": "none", "autoreset_mode": "Disabled", "output": "torch"}
    env = gym.make_vec(env_id, num_envs=options.num_images, **env_kwargs)
    inner, actor = unwrapped(env), actor_for(env)
    observation, info = env.reset(seed=options.seed)
    images, undecided, infos = [], [], []
    with torch.no_grad():
        for t in range(inner.sampler.horizon + 1):
            images.append(inner.sampler.decode(inner.state))
            undecided.append(inner.sampler.undecided(inner.state))
            if t < inner.sampler.horizon:
                observation, _, _, _, info = env.step(actor(observation))
                infos.append(info)
    names = [name for name in info if name.startswith("schedule/")]
    save_film_strip(
        options.out,
        torch.stack(images),
        torch.stack(undecided),
        [str(inner.contexts.names[label]) for label in info["context"].tolist()],
        {n.removeprefix("schedule/"): torch.stack([each[n] for each in infos]) for n in names},
    )
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


def _export(options: argparse.Namespace) -> int:
    from genenv.checkpoints import write_text
    from genenv.export import (
        DIFFUSION,
        FLOW,
        LAYOUTS,
        SCHEDULERS,
        at_steps,
        for_diffusers,
        read_schedule,
        schedule_text,
        write_weights,
    )
    from genenv.json_text import read_object

    if options.to in LAYOUTS:
        if options.out is None:
            raise CommandError(f"--to {options.to} needs --out, the file to write")
        if options.steps is not None or options.scheduler_config is not None:
            raise CommandError(
                f"--steps and --scheduler-config are of schedules; --to {options.to} writes a network"
            )
        write_weights(options.source, options.to, options.out)
        print(options.out)
        return 0
    levels = at_steps(read_schedule(options.source), options.steps)
    if options.to == "json":
        text = schedule_text({len(levels) - 1: levels})
    else:
        config, names = None, SCHEDULERS
        if options.scheduler_config is not None:
            config = read_object(options.scheduler_config)
            names = (FLOW,) if "FlowMatch" in config.get("_class_name", "") else DIFFUSION
        arguments, refused = {}, []
        for name in names:
            try:
                arguments[name] = for_diffusers(levels, name, config)
            except ValueError as error:
                refused.append(str(error))
        if not arguments:
            raise CommandError("; ".join(refused))
        for reason in refused:
            print(f"left out: {reason}", file=sys.stderr)
        text = json.dumps(arguments, indent=2) + "\n"
    if options.out is None:
        print(text, end="")
    else:
        write_text(options.out, text)
        print(options.out)
    return 0


def _report(options: argparse.Namespace) -> int:
    from genenv.viz.report import write_report

    if not options.run_dir.is_dir():
        raise CommandError(f"{options.run_dir} is not the folder of a run")
    write_report(options.run_dir, options.run_dir.resolve().name)
    print(options.run_dir / "report.html")
    return 0


def known_id(env_id: str) -> str:
    """Returns the name of a registered id of genenv's, without the module that registers it.

    Args:
        env_id: "AdaGen/MaskGIT-v0", or "my_module:My/Env-v0", whose module is imported first; those of the current
            folder count, as they do for python -m.

    Raises:
        ValueError: if there is no such id.
    """
    from genenv.registration import defaults

    with _current_folder():
        defaults(env_id)
    return env_id.rpartition(":")[2]


def json_object(name: str, text: str) -> dict[str, Any]:
    """Returns the keyword arguments that a JSON object on the command line describes; `name` says which."""
    from genenv.json_text import parse_object

    try:
        return parse_object(text, "it")
    except ValueError as error:
        raise CommandError(f"{name} must be a JSON object, got {text[:200]!r} ({error})") from None


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Lets modules of the current folder be imported."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")


def _env_kwargs(options: argparse.Namespace) -> dict[str, Any]:
    kwargs = json_object("--env-kwargs", options.env_kwargs)
    if "num_envs" in kwargs:
        raise CommandError(
            "--env-kwargs has no num_envs: the command decides how many images there are at once"
        )
    given = {"backbone": options.backbone, "num_steps": options.num_steps}
    return kwargs | {name: value for name, value in given.items() if value is not None}


def _load(path: str) -> Any:
    """Returns what "module:attribute" names; modules of the current folder count."""
    module, separator, attribute = path.partition(":")
    if not separator:
        raise CommandError(f"--policy must be MODULE:FUNCTION, got {path!r}")
    with _current_folder():
        loaded = importlib.import_module(module)
    if not hasattr(loaded, attribute):
        raise CommandError(f"--policy: module {module} has no {attribute!r}")
    return getattr(loaded, attribute)


def _takes(function: Any, *args: Any, **kwargs: Any) -> bool:
    """Returns whether a function can be called with these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except (TypeError, ValueError):
        return False
    return True


def _wants_env(function: Any) -> bool:
    """Returns whether a function makes an actor of an environment: its parameter is called so."""
    try:
        return list(inspect.signature(function).parameters)[:1] == ["env"]
    except (TypeError, ValueError):
        return False


def _in_words(licences: dict[str, str]) -> str:
    """Returns "licence (file, file); licence (file)"."""
    files: dict[str, list[str]] = {}
    for file, licence in licences.items():
        files.setdefault(licence, []).append(file)
    return "; ".join(f"{licence} ({', '.join(names)})" for licence, names in files.items()) or "none"


def _print_table(rows: Iterable[tuple[str, ...]], indent: int = 0) -> None:
    """Prints rows with aligned columns."""
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" " * indent + "  ".join(cells).rstrip())


if __name__ == "__main__":
    sys.exit(main())
