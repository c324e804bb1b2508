"""Run directories: what they hold, who writes them, and what damage does."""

import contextlib
import dataclasses
import errno
import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, ClassVar

import gymnasium as gym
import pytest
import torch

from agents import adascope, runs
from agents.runs import MetricsLog, check_free, load_checkpoint, open_run, read_config, save_checkpoint
from genenv.checkpoints import CheckpointError
from genenv.evaluation import Evaluation
from genenv.ranges import AT_LEAST_1, check
from genenv.rollout import Episode

ROOT = Path(__file__).parents[2]
STATE = {
    "iteration": 3,
    "policy": {"weight": torch.arange(4000.0)},
    "generator": torch.Generator().get_state(),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """The least that a run asks for."""

    agent: ClassVar[str] = "one"
    resumable: ClassVar[tuple[str, ...]] = ("num_iterations",)
    reward_fields: ClassVar[tuple[str, ...]] = runs.REWARD_FIELDS
    env_id: str = "AdaGen/MaskGIT-v0"
    name: str | None = None
    reward: str = "clip"
    seed: int = 0
    num_iterations: Annotated[int, AT_LEAST_1] = 5
    eval_images: int = 100
    backbone: str = "digits"

    def __post_init__(self):
        check(self)

    @property
    def env_kwargs(self) -> dict[str, Any]:
        return {"backbone": self.backbone}


class Counter:
    """A learner that counts."""

    def __init__(self, iteration: int = 0):
        self.iteration = iteration

    def state_dict(self):
        return {"iteration": self.iteration}

    def load_state_dict(self, state):
        self.iteration = state["iteration"]


def finished(out: Path, iterations: int = 3) -> Path:
    with open_run(Config(), out, learner := Counter(), resume=False) as run:
        for _ in range(iterations):
            learner.iteration += 1
            run.record({"iteration": learner.iteration, "reward": 0.5})
        run.save(learner)
    return out


def test_a_checkpoint_comes_back_as_it_was_and_is_a_file_of_torch(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    for loaded in (load_checkpoint(path), torch.load(path, weights_only=True)):
        assert loaded["iteration"] == 3
        assert torch.equal(loaded["policy"]["weight"], STATE["policy"]["weight"])


def test_a_flipped_bit_or_a_zeroed_block_anywhere_is_noticed(tmp_path):
    path, chance = tmp_path / "checkpoint.pt", random.Random(1)
    save_checkpoint(STATE, path)
    content = path.read_bytes()
    ends = [0, len(content) - 1, len(content) - runs.DIGEST - 1, len(content) - runs.DIGEST - 2]
    for place in ends + [chance.randrange(len(content)) for _ in range(100)]:
        damaged = bytearray(content)
        damaged[place] ^= 1 << chance.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged"):
            load_checkpoint(path)
    for _ in range(40):
        size = chance.choice([16, 512, 4096])
        start = chance.randrange(len(content) - size)
        damaged = content[:start] + bytes(size) + content[start + size :]
        if damaged == content:
            continue
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged"):
            load_checkpoint(path)


@pytest.mark.parametrize("length", [0, 1, 64, 200, -1, -64])
def test_a_truncated_checkpoint_is_named(tmp_path, length):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is damaged"):
        load_checkpoint(path)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is missing"):
        load_checkpoint(tmp_path / "checkpoint.pt")


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint({"generator": MetricsLog(path)}, path)
    with pytest.raises(CheckpointError, match="more than tensors and plain values"):
        load_checkpoint(path)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_keeps_the_old_checkpoint(tmp_path, monkeypatch, call):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"checkpoint\.pt could not be written: No space left"):
        save_checkpoint({**STATE, "iteration": 4}, path)
    monkeypatch.undo()
    assert load_checkpoint(path)["iteration"] == 3
    assert os.listdir(tmp_path) == ["checkpoint.pt"]


def test_a_checkpoint_is_on_the_disk_before_it_takes_the_place_of_the_old_one(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (calls.append("fsync"), fsync(file)))
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("replace"), replace(*paths)))
    save_checkpoint(STATE, tmp_path / "checkpoint.pt")
    assert calls.index("fsync") < calls.index("replace")


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Makes the operating system refuse what would make a file longer, as a full disk does: after a part."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 30])
def test_a_line_that_does_not_fit_on_the_disk_is_not_there_and_the_file_is_named(tmp_path, room):
    out = finished(tmp_path / "run")
    log, learner = MetricsLog(out), Counter()
    content = log.path.read_bytes()
    with (
        pytest.raises(OSError, match=r"metrics\.jsonl could not be written: File too large"),
        files_of_at_most(len(content) + room),
    ):
        log.append({"iteration": 4, "reward": 0.123456789})
    assert log.path.read_bytes() == content
    with open_run(Config(), out, learner, resume=True) as run:
        assert learner.iteration == 3
        run.record({"iteration": 4, "reward": 0.25})
    assert log.read()[-1] == {"iteration": 4, "reward": 0.25}


def test_a_line_is_on_the_disk_before_the_checkpoint(tmp_path, monkeypatch):
    log, synced, fsync = MetricsLog(tmp_path), [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: (synced.append(os.fstat(file).st_ino), fsync(file)))
    log.append({"iteration": 0})
    assert synced == [log.path.stat().st_ino]


def test_events_that_do_not_fit_on_the_disk_are_named(tmp_path):
    out = tmp_path / "run"

    class Full:
        def add_scalar(self, *_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    out.mkdir()
    run = runs.Run(out, Config(), MetricsLog(out), Full())  # type: ignore[arg-type]
    with pytest.raises(OSError, match="tensorboard could not be written: No space left"):
        run.record({"iteration": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_nothing_would_read_again_is_not_logged(tmp_path, value):
    log = MetricsLog(tmp_path)
    log.append({"iteration": 0})
    with pytest.raises(ValueError, match=rf"metrics\.jsonl takes finite numbers, got held_out/fid {value}"):
        log.append({"iteration": 1, "held_out/fid": value})
    assert log.read() == [{"iteration": 0}]


def test_resuming_drops_what_was_logged_after_the_checkpoint_and_a_broken_line(tmp_path):
    log = MetricsLog(tmp_path)
    for iteration in (0, 1, 2, 3):
        log.append({"iteration": iteration, "reward": 0.5})
    with log.path.open("a") as file:
        file.write('{"iteration": 4, "rew')
    log.cut_after(2)
    assert [json.loads(line)["iteration"] for line in log.path.read_text().splitlines()] == [0, 1, 2]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"reward": 1}', "line 2 has no whole 'iteration'"),
        ("[1]", "line 2 must hold a JSON object"),
        ('{"iteration": 1.5}', "line 2 has no whole 'iteration'"),
        ('{"iteration": 1, "reward": "a"}', "line 2: 'reward' must be a number, got 'a'"),
        ('{"iteration": 1, "rew', "line 2 is not readable JSON"),
    ],
)
def test_an_edited_log_is_answered_with_file_and_line(tmp_path, line, message):
    log = MetricsLog(tmp_path)
    log.path.write_text('{"iteration": 0}\n' + line + '\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match=rf"metrics\.jsonl, {message}"):
        log.read()


def test_a_new_run_is_refused_where_one_is_and_where_a_log_is_left_of_one(tmp_path):
    finished(tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        finished(tmp_path / "run")
    (tmp_path / "run" / "checkpoint.pt").unlink()
    with pytest.raises(ValueError, match=r"metrics\.jsonl is left of a run without a checkpoint"):
        finished(tmp_path / "run")


@pytest.mark.parametrize("inside", [(), ("run",), ("deep", "run")])
def test_a_new_run_is_refused_where_a_file_is(tmp_path, inside):
    place = tmp_path / "file"
    place.write_text("kept")
    out = place.joinpath(*inside)
    with pytest.raises(ValueError, match=f"--out {out} must be a directory, but {place} is a file"):
        check_free(out)
    assert place.read_text() == "kept"


def test_a_run_that_has_lost_its_log_is_not_continued(tmp_path):
    out = finished(tmp_path / "run")
    (out / "metrics.jsonl").unlink()
    with (
        pytest.raises(
            ValueError, match=r"must hold iterations 1 to 3, as the checkpoint does, got 0 of them"
        ),
        open_run(Config(), out, Counter(), resume=True),
    ):
        pass


def test_a_run_with_a_gap_in_its_log_is_not_continued(tmp_path):
    out = finished(tmp_path / "run")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    (out / "metrics.jsonl").write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(ValueError, match="got 2 of them"), open_run(Config(), out, Counter(), resume=True):
        pass


def test_fewer_iterations_than_done_are_refused_and_change_nothing(tmp_path):
    out = finished(tmp_path / "run")
    before = (out / "config.json").read_text(), (out / "metrics.jsonl").read_text()
    with (
        pytest.raises(ValueError, match=r"num_iterations must be at least the 3 that .* has done, got 2"),
        open_run(Config(num_iterations=2), out, Counter(), resume=True),
    ):
        pass
    assert before == ((out / "config.json").read_text(), (out / "metrics.jsonl").read_text())


def test_another_runs_checkpoint_is_refused(tmp_path):
    out = finished(tmp_path / "run")
    save_checkpoint({"step": 3}, out / "checkpoint.pt")
    with (
        pytest.raises(CheckpointError, match=r"checkpoint\.pt is not of this configuration: 'iteration'"),
        open_run(Config(), out, Counter(), resume=True),
    ):
        pass


def test_a_second_writer_is_refused_and_a_dead_one_is_not_in_the_way(tmp_path):
    new, old = tmp_path / "new", finished(tmp_path / "old")
    code = (
        "import sys, time; from pathlib import Path; from agents.runs import locked\n"
        "with locked(Path(sys.argv[1])), locked(Path(sys.argv[2])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(new), str(old)]
    holder = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    for out in (new, old):
        with (
            pytest.raises(ValueError, match="is in use by another process"),
            open_run(Config(), out, Counter(), resume=out == old),
        ):
            pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    for out in (new, old):
        with open_run(Config(), out, Counter(), resume=out == old):
            pass


def evaluation(decisions: int = 2, number: int = 3, fid: float = 4.0) -> Evaluation:
    episode = Episode(
        observations={},
        actions=torch.zeros(decisions, number, 4),
        rewards=torch.zeros(decisions, number),
        diagnostics={"nfe": torch.ones(decisions, number)},
        extras={},
        components={},
        images=torch.rand(number, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
        context=torch.arange(number),
        group=torch.arange(number),
    )
    return Evaluation(
        metrics={"fid": fid},
        episode=episode,
        protocol="digits",
        judge_sha256="1",
        reference_sha256="2",
        num_images=100,
        label_plan="cycle",
        seeds=(0, 99),
        intervals={"fid": (3.0, 5.0)},
        nfe=None,
        images_per_second=10.0,
        class_accuracy=[0.5, 1.0],
    )


def kept_or_made(out: Path, made: Evaluation, config: Config = Config()) -> Evaluation:
    found = runs.Run(out, config, MetricsLog(out), None).evaluated_once(lambda: made)
    assert found is not None
    return found


def test_the_first_evaluation_is_made_once(tmp_path):
    first = kept_or_made(tmp_path, evaluation())
    again = kept_or_made(tmp_path, evaluation(fid=7.0), Config(num_iterations=9))
    assert again.record() == first.record() == evaluation().record()
    assert torch.equal(again.episode.images, first.episode.images)
    assert again.episode.images.dtype == torch.float32


EPISODE_FAULTS = {
    "lost": lambda episode: episode.pop("actions"),
    "unknown": lambda episode: episode.update(step=torch.zeros(3)),
    "no tensor": lambda episode: episode.update(rewards=[0.0]),
    "fewer": lambda episode: episode.update(context=torch.arange(2)),
    "a single image": lambda episode: episode.update(images=episode["images"][0]),
    "no bytes": lambda episode: episode.update(images=episode["images"].float()),
    "transposed": lambda episode: episode.update(rewards=episode["rewards"].T),
    "of another shape": lambda episode: episode["diagnostics"].update(nfe=torch.zeros(3)),
}
FAULTS = {
    "a list": lambda state: [1, 2],
    "a tensor": lambda state: torch.zeros(3),
    "empty": lambda state: {},
    "of another version": lambda state: state | {"task": "genenv 0.0.1"},
    "no evaluation": lambda state: state | {"evaluation": None},
    **{
        f"evaluation: {name}": lambda state, change=change: (
            state | {"evaluation": state["evaluation"] | change}
        )
        for name, change in {
            "metrics": {"metrics": [1.0]},
            "a metric": {"metrics": {"fid": "4"}},
            "not finite": {"metrics": {"fid": float("nan")}},
            "an interval": {"intervals": {"fid": (1.0,)}},
            "seeds": {"seeds": [0, 99]},
            "episode": {"episode": [1]},
            "unknown": {"judge": "x"},
        }.items()
    },
    **{
        f"episode: {name}": lambda state, change=change: (change(state["evaluation"]["episode"]), state)[1]
        for name, change in EPISODE_FAULTS.items()
    },
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_first_evaluation_that_is_not_as_it_was_written_is_made_again(tmp_path, fault):
    kept_or_made(tmp_path, evaluation())
    path = tmp_path / "handcrafted.pt"
    save_checkpoint(fault(load_checkpoint(path)), path)
    assert kept_or_made(tmp_path, evaluation(fid=7.0)).metrics == {"fid": 7.0}
    assert kept_or_made(tmp_path, evaluation(fid=8.0)).metrics == {"fid": 7.0}


def test_a_first_evaluation_of_another_configuration_is_made_again(tmp_path):
    kept_or_made(tmp_path, evaluation())
    assert kept_or_made(tmp_path, evaluation(fid=7.0), Config(seed=1)).metrics == {"fid": 7.0}


def test_environments_and_agents_need_nothing_that_only_unix_has():
    code = (
        "import os, sys, torch, gymnasium, genenv; del os.register_at_fork;"
        "sys.modules.update(fcntl=None, resource=None, pwd=None, termios=None); import agents.adagen;"
        "gymnasium.make('AdaGen/MaskGIT-v0', reward='none').reset(seed=0)"
    )
    only_here = "ignore:only soft file lock"  # filelock finds neither Windows nor what it needs of Unix
    command = [sys.executable, "-W", "error", "-W", only_here, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "change",
    [
        {"env_id": "bad_module:AdaGen/MaskGIT-v0"},
        {"reward": "bad_module:make"},
        {"reward": '{"clip": 1.0, "bad_module:make": 2.0}'},
        {"reward": "subprocess:getoutput"},
        {"env_id": "ART/GaussianMixture-v0", "backbone": "bad_module:make"},
        {"backbone": "random:bad_module:make"},
    ],
)
def test_a_run_directory_runs_no_module_unless_it_is_trusted(tmp_path, monkeypatch, change):
    (tmp_path / "bad_module.py").write_text("raise SystemExit('this code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(Config()) | change))
    with pytest.raises(ValueError, match=r"would run the code of a module; .* --trust-modules"):
        read_config(Config, tmp_path)
    found = read_config(Config, tmp_path, trust_modules=True)
    assert dataclasses.asdict(found).items() >= change.items()


def test_every_field_that_names_a_reward_must_be_trusted(tmp_path):
    config = dataclasses.asdict(adascope.Config()) | {"semantic": "bad_module:make"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'bad_module:make' would run the code of a module"):
        read_config(adascope.Config, tmp_path)


def test_an_id_of_a_module_that_is_loaded_already_is_taken(tmp_path):
    (tmp_path / "config.json").write_text(
        json.dumps(dataclasses.asdict(Config()) | {"env_id": "genenv:AdaGen/SiT-v0"})
    )
    assert read_config(Config, tmp_path).env_id == "genenv:AdaGen/SiT-v0"


def test_a_released_backbone_with_random_weights_is_no_module(tmp_path):
    change = {"backbone": "random:imagenet256-dit-xl-2"}
    (tmp_path / "config.json").write_text(json.dumps(dataclasses.asdict(Config()) | change))
    assert read_config(Config, tmp_path).env_kwargs == change


@pytest.mark.parametrize("prefix", ["", "random:"])
def test_a_folder_with_a_colon_in_its_name_is_no_module(tmp_path, monkeypatch, prefix):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad_module.py").write_text("raise SystemExit('this code has run')")
    monkeypatch.syspath_prepend(tmp_path)
    Path("bad_module:make").mkdir()
    for backbone in ("bad_module:make", str(tmp_path / "bad_module:make")):
        change = {"backbone": prefix + backbone, "env_id": "ART/GaussianMixture-v0"}
        Path("config.json").write_text(json.dumps(dataclasses.asdict(Config()) | change))
        config = read_config(Config, tmp_path)
        assert config.backbone == prefix + backbone
        with pytest.raises(ValueError, match="backbone must be"):  # and nothing takes it for one
            gym.make_vec(config.env_id, num_envs=1, backbone=config.backbone)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"is not a run directory: it has no config\.json"):
        read_config(Config, tmp_path)
