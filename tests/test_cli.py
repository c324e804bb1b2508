import contextlib
import json
import sys
import types
from pathlib import Path

import gymnasium as gym
import pytest
import torch

import genenv
from genenv import bench, cli
from genenv.check import CheckFailed


def test_list_shows_every_id_with_its_parameters_rewards_and_licence(capsys):
    assert cli.main(["list"]) == 0
    shown = capsys.readouterr().out
    for env_id in genenv.env_ids():
        assert env_id in shown
    assert "mask_ratio, mask_temperature, token_temperature, guidance_weight" in shown
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert (
        "digits rewards: none, adversarial, classifier, clip, fid, hpsv2, loo_fid, loo_fid_full, png_size"
        in lines
    )
    (rewards,) = [line for line in lines if line.startswith("imagenet256-dit-xl-2 rewards: ")]
    assert "classifier" not in rewards  # the digits' own
    assert "loo_fid" in rewards
    assert "tier digits: images of 1 x 8 x 8, 10 classes" in lines
    assert "CC BY 4.0" in shown
    assert any(line.startswith("inception_v3_google-0cc3c7bd.pth ") for line in lines)


def test_check_reports_every_promise(capsys):
    assert cli.main(["check", "AdaGen/MaskGIT-v0", "--num-steps", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert all(line.startswith("ok ") for line in lines)


def test_check_needs_no_step_in_the_observation(capsys):
    kwargs = json.dumps({"action_mode": "physical", "observe": ["tokens"], "num_steps": 2})
    assert cli.main(["check", "AdaGen/MaskGIT-v0", "--env-kwargs", kwargs]) == 0
    assert "ok   there is an action for the hand-crafted schedule" in capsys.readouterr().out


def test_check_fails_where_a_promise_is_broken(capsys, monkeypatch):
    def broken(make):
        raise CheckFailed("0.3 instead of 0.4")

    monkeypatch.setattr("genenv.check._hand_crafted", broken)
    assert cli.main(["check"]) == 1
    assert "FAIL a zero action is the hand-crafted schedule: 0.3 instead of 0.4\n" in capsys.readouterr().out


def load_still_policy(run_dir):
    """Stands for an agent's loader: a policy of zeros, trained on two steps."""
    (run_dir / "loaded").touch()

    def actor(observation):
        assert set(observation) == {"step"}
        return torch.zeros(len(observation["step"]), 4)

    actor.env_kwargs = {"num_steps": 2, "observe": ["step"]}
    return actor


def test_evaluate_measures_the_hand_crafted_schedule_and_a_policy(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "still", sys.modules[__name__])
    size = ["--num-images", "120"]
    static, policy = tmp_path / "static.json", tmp_path / "policy.json"
    command = ["evaluate", "AdaGen/MaskGIT-v0", *size]
    assert cli.main([*command, "--num-steps", "2", "--repetitions", "2", "--json", str(static)]) == 0
    shown = capsys.readouterr()
    assert shown.err == ""  # nobody watches: no bar
    lines = [line.split() for line in shown.out.splitlines()]
    assert " ".join(lines[0]) == "metric mean 95 % interval (2 repetitions)"
    runs = json.loads(static.read_text())
    name, mean, low, _, high = lines[1]
    assert (name, mean) == ("fid", f"{runs['metrics']['fid']:.3f}")
    assert float(low) < float(mean) < float(high)
    loader = ["--policy", "still:load_still_policy", "--run", str(tmp_path)]
    monkeypatch.setattr(
        cli, "_load", lambda path: lambda run_dir: types.SimpleNamespace(env_id="AdaGen/VAR-v0")
    )
    assert cli.main([*command, *loader]) == 2
    assert "was trained on AdaGen/VAR-v0, got AdaGen/MaskGIT-v0" in capsys.readouterr().err
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "still", sys.modules[__name__])
    assert cli.main([*command, *loader, "--json", str(policy)]) == 0
    assert (tmp_path / "loaded").is_file()
    assert len(runs["runs"]) == 2
    assert runs["runs"][0]["fid"] != runs["runs"][1]["fid"]
    assert json.loads(policy.read_text())["metrics"] == pytest.approx(runs["runs"][0])


def test_tokens_without_a_policy_are_those_of_the_frozen_generator(capsys, tmp_path):
    tokens, observe = "PolicyTuning/Tokens-v0", ["--env-kwargs", json.dumps({"observe": ["logits"]})]
    found = []
    for policy in ([], ["--policy", "genenv.rollout:generator_policy"]):
        out = ["--num-images", "80", "--json", str(tmp_path / "found.json")]
        assert cli.main(["evaluate", tokens, *observe, *policy, *out]) == 0
        found.append(json.loads((tmp_path / "found.json").read_text()))
    assert found[0]["metrics"] == found[1]["metrics"]
    assert [each["name"] for each in found] == ["frozen generator", "genenv.rollout:generator_policy"]
    assert (found[0]["decisions"], found[0]["nfe"]) == (16, 16)
    strip = tmp_path / "strip.png"
    assert cli.main(["play", tokens, *observe, "--num-images", "2", "--out", str(strip)]) == 0
    assert strip.stat().st_size > 1000
    capsys.readouterr()
    for command in ("evaluate", "play"):
        assert cli.main([command, tokens]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "as with observe=['logits'], got observe=['tokens', 'step', 'context']" in line


def test_evaluate_says_where_its_numbers_come_from(capsys, tmp_path):
    path = tmp_path / "found.json"
    command = f"evaluate AdaGen/LlamaGen-v0 --num-images 100 --batch-size 64 --device cpu --json {path}"
    assert cli.main(command.split()) == 0
    lines = capsys.readouterr().out.splitlines()
    found = json.loads(path.read_text())
    assert found["env_id"] == "AdaGen/LlamaGen-v0"
    assert found["env_kwargs"] == {"backbone": "digits", "device": "cpu"}
    assert (found["policy"], found["run"], found["genenv"]) == (None, None, genenv.__version__)
    assert found["intervals"].keys() == {"fid", "inception_score", "accuracy"}
    assert found["flops"] > 1e6
    rows = dict(line.split(maxsplit=1) for line in lines if line)
    low, high = found["intervals"]["fid"]
    assert rows["fid"].split() == f"{found['metrics']['fid']:.3f} {low:.3f} to {high:.3f}".split()
    assert rows["kid"] == f"{found['metrics']['kid']:.3f}"  # no interval of a single repetition
    assert rows["protocol"] == "digits"
    assert rows["judge"] == f"sha256 {found['judge_sha256']}"
    assert rows["reference"] == f"sha256 {found['reference_sha256']}"
    assert rows["images"] == f"100, held-out seeds {found['seeds'][0]} to {found['seeds'][1]}"
    assert rows["labels"] == "cycle: balanced"
    assert rows["cost"].startswith(
        f"{found['nfe']:.1f} network evaluations (guidance counted), {found['flops'] / 1e9:.3g} GFLOPs"
    )
    assert rows["speed"].endswith("images/s, judged")


def test_evaluate_adds_the_clip_score_on_request(capsys, tmp_path):
    path = tmp_path / "found.json"
    command = ["evaluate", "AdaGen/MaskGIT-v0", "--num-images", "100", "--clip-score", "--json", str(path)]
    assert cli.main(command) == 0
    (row,) = [line.split() for line in capsys.readouterr().out.splitlines() if "clip_score" in line]
    score = json.loads(path.read_text())["metrics"]["clip_score"]
    assert float(row[1]) == pytest.approx(score, abs=1e-3)
    assert 0.5 < score < 1.0


def make_halves(env):
    """Stands for an actor that needs to know its environment."""
    return lambda observation: torch.full((env.num_envs, *env.single_action_space.shape), 0.5)


def shipped_policy(device="cpu"):
    actor = lambda observation: torch.zeros(len(observation["step"]), 4, device=device)  # noqa: E731
    actor.env_kwargs = {"num_steps": 3}
    return actor


@pytest.mark.parametrize(
    ("function", "decisions"), [("make_halves", 2), ("shipped_policy", 3), ("shipped_policy --device cpu", 3)]
)
def test_a_policy_needs_no_run(monkeypatch, tmp_path, capsys, function, decisions):
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])
    path = tmp_path / "found.json"
    steps = "" if decisions == 3 else "--num-steps 2"
    command = f"evaluate --policy own:{function} {steps} --num-images 70 --json {path}"
    assert cli.main(command.split()) == 0
    found = json.loads(path.read_text())
    assert found["decisions"] == decisions
    assert found["name"] == f"own:{function.split()[0]}"


def test_evaluate_takes_any_keyword_argument_and_a_name(capsys, tmp_path):
    path = tmp_path / "found.json"
    kwargs = json.dumps({"solver": "euler", "num_steps": 3})
    command = ["evaluate", "AdaGen/SiT-v0", "--num-images", "70", "--env-kwargs", kwargs]
    assert cli.main([*command, "--name", "euler, 3", "--json", str(path)]) == 0
    found = json.loads(path.read_text())
    assert (found["name"], found["decisions"], found["env_kwargs"]["solver"]) == ("euler, 3", 4, "euler")


def test_an_interrupted_evaluation_keeps_the_repetitions_that_were_finished(monkeypatch, tmp_path, capsys):
    from genenv.evaluation import Evaluator

    path, call, calls = tmp_path / "found.json", Evaluator.__call__, []

    def interrupted(evaluator, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return call(evaluator, *args, **kwargs)

    monkeypatch.setattr(Evaluator, "__call__", interrupted)
    command = f"evaluate --num-images 70 --num-steps 1 --repetitions 4 --json {path}"
    assert cli.main(command.split()) == 130
    assert capsys.readouterr().err == "genenv evaluate: interrupted\n"
    assert len(json.loads(path.read_text())["runs"]) == 2


def test_evaluate_reports_how_far_it_is(capsys, monkeypatch):
    reported, command = [], "evaluate --num-images 70 --batch-size 40 --num-steps 1 --repetitions 2"

    @contextlib.contextmanager
    def progress(what):
        yield lambda done, total: reported.append((done, total))

    monkeypatch.setattr("genenv.progress.progress", progress)
    assert cli.main(command.split()) == 0
    assert reported == [(40, 140), (70, 140), (110, 140), (140, 140)]


def test_bench_prints_and_writes_the_speed(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "RATIO_ENVS", 2)
    monkeypatch.setattr(bench, "LOOP_ENVS", 2)
    threads = torch.get_num_threads()
    path = tmp_path / "bench.json"
    command = (
        f"bench --backbone digits --dtype bfloat16 --num-steps 2 --num-images 1 2 --repeats 1 --json {path}"
    )
    assert cli.main([*command.split(), "--threads", str(threads)]) == 0
    shown = capsys.readouterr().out
    for row in (
        "bare sampler loop",
        "overhead over the bare network calls",
        "speed over the released loop, 2 images",
        "speed over separate calls, 2 images",
    ):
        assert row in shown
    assert "peak memory" not in shown  # known on CUDA only
    found = json.loads(path.read_text())
    assert found["threads"] == threads
    assert min(found["ratio"], found["closed_loop_speedup"]) > 0
    assert found["overhead"] < 1
    assert set(found["images_per_second"]["native"]) == {"1", "2"}
    assert min(found["images_per_second"]["native"].values()) > 0
    assert found["peak_memory"] == {}


def test_bench_passes_its_options_on_and_shows_the_memory_of_a_gpu(capsys, monkeypatch):
    asked = {}

    def measure(env_id, *, device, repeats, batch_sizes, report, **env_kwargs):
        asked.update(env_kwargs, device=device, repeats=repeats, batch_sizes=batch_sizes)
        speeds = dict.fromkeys(batch_sizes, 8.25)
        return bench.Throughput(
            env_id,
            device,
            1,
            10.0,
            11.0,
            1.1,
            0.0123,
            1.5,
            1.75,
            {"native": speeds},
            dict.fromkeys(batch_sizes, 3 << 29),
        )

    monkeypatch.setattr(bench, "measure", measure)
    command = "bench AdaGen/DiT-v0 --backbone random:imagenet256-dit-xl-2 --dtype bfloat16 --device cuda"
    assert cli.main([*command.split(), "--num-images", "64"]) == 0
    assert asked == {
        "backbone": "random:imagenet256-dit-xl-2",
        "dtype": "bfloat16",
        "device": "cuda",
        "repeats": 9,
        "batch_sizes": [64],
    }
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[-2:] == [["images", "at", "once", "native", "peak", "memory"], ["64", "8.2", "1.50", "GiB"]]
    assert ["overhead", "over", "the", "bare", "network", "calls", "1.2%"] in lines


MINE = """
import genenv

genenv.register("Mine/MaskGIT-v0", "genenv.envs.maskgit:make_sampler", backbone="digits", num_steps=2)
"""


@pytest.fixture
def mine(monkeypatch, tmp_path):
    """Returns the id of a module in the current folder, which is not on the path."""
    (tmp_path / "my_module.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield "my_module:Mine/MaskGIT-v0"
    gym.registry.pop("Mine/MaskGIT-v0", None)
    sys.modules.pop("my_module", None)


def test_an_id_of_ones_own_works_with_every_command(mine, monkeypatch, capsys):
    monkeypatch.setattr(bench, "RATIO_ENVS", 2)
    monkeypatch.setattr(bench, "LOOP_ENVS", 2)
    for command in (
        f"check {mine}",
        f"evaluate {mine} --num-images 70 --json found.json",
        f"bench {mine} --num-images 1 --repeats 1",
        f"play {mine} --num-images 2",
        "list",
    ):
        assert cli.main(command.split()) == 0, capsys.readouterr()
    assert "\nMine/MaskGIT-v0\n" in capsys.readouterr().out
    found = json.loads(Path("found.json").read_text())
    assert (found["env_id"], found["decisions"]) == ("Mine/MaskGIT-v0", 2)
    assert "" not in sys.path


@pytest.fixture
def strip(monkeypatch):
    """Returns what a film strip is made of."""
    drawn = {}

    def save_film_strip(path, images, undecided, labels, values):
        drawn.update(path=path, images=images, undecided=undecided, labels=labels, values=values)

    monkeypatch.setattr("genenv.viz.plots.save_film_strip", save_film_strip)
    return drawn


def test_play_draws_the_hand_crafted_schedule(capsys, strip, tmp_path):
    out = tmp_path / "strip.png"
    assert cli.main(["play", "--num-images", "3", "--num-steps", "5", "--out", str(out)]) == 0
    assert strip["path"] == out
    assert strip["images"].shape == (6, 3, 1, 8, 8)
    assert strip["undecided"].shape == (6, 3, 4, 4)
    assert (strip["undecided"][0] == 1).all()
    assert len(strip["labels"]) == 3
    assert list(strip["values"]) == ["mask_ratio", "mask_temperature", "token_temperature", "guidance_weight"]
    assert capsys.readouterr().out == f"{out}\n"


def test_play_names_the_classes_of_the_tier(strip, tmp_path):
    kwargs = json.dumps({"contexts": [7, 3, 7]})
    assert cli.main(["play", "--num-images", "3", "--num-steps", "1", "--env-kwargs", kwargs]) == 0
    assert strip["labels"] == ["seven", "three", "seven"]


def test_play_draws_a_policy(monkeypatch, strip, tmp_path):
    monkeypatch.setitem(sys.modules, "own", sys.modules[__name__])
    published = ("--env-kwargs", json.dumps({"schedule": "published"}))
    for policy in ("--static", "--policy own:make_halves"):
        assert cli.main([*f"play --num-images 2 --num-steps 2 --seed 3 {policy}".split(), *published]) == 0
        weights = strip["values"]["guidance_weight"]
        assert weights.shape == (2, 2)
        assert (weights[-1] > 1.0).all() == (policy != "--static")  # a ramp to 1 by hand
    kwargs = json.dumps({"smoothing": 0.5})
    assert (
        cli.main(["play", "--policy", "own:shipped_policy", "--num-images", "2", "--env-kwargs", kwargs]) == 0
    )
    assert strip["images"].shape[:2] == (4, 2)


@pytest.mark.parametrize(
    ("options", "folder", "only"),
    [("", "zoo/digits", None), ("--out digits", "digits", None), ("--only vq", "zoo/digits", "vq")],
)
def test_zoo_build_works_in_the_current_folder_and_shows_its_progress(
    monkeypatch, tmp_path, capsys, options, folder, only
):
    calls = []

    def build(out, only, progress):
        calls.append((out, only))
        for step in (1, 2, 3):
            progress("vq", step, 3, 0.5 / step)

    monkeypatch.setattr("genenv.zoo.digits.build", build)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["zoo", "build", "digits", *options.split()]) == 0
    assert calls == [(tmp_path / folder, only)]
    assert capsys.readouterr().out.splitlines() == [
        "vq: step 1 of 3, loss 0.5000",
        "vq: step 3 of 3, loss 0.1667",
        folder,
    ]


def test_report_calls_the_writer(monkeypatch, tmp_path):
    calls = []
    report = types.ModuleType("genenv.viz.report")
    report.write_report = lambda run_dir, title: calls.append((run_dir, title))
    monkeypatch.setitem(sys.modules, "genenv.viz.report", report)
    run = tmp_path / "my_run"
    run.mkdir()
    assert cli.main(["report", str(run)]) == 0
    assert calls == [(run, "my_run")]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("check CartPole-v1", "ART/GaussianMixture-v0, got 'CartPole-v1'"),
        ("check AdaGen/DIT-v0", "got 'AdaGen/DIT-v0'; did you mean 'AdaGen/DiT-v0'?"),
        ("play no_such:My/Env-v0", "env_id 'no_such:My/Env-v0' cannot be loaded: No module named 'no_such'"),
        ("bench --env-kwargs [1]", "--env-kwargs must be a JSON object, got '[1]'"),
        ("check --env-kwargs {", "--env-kwargs must be a JSON object, got '{'"),
        ('check --env-kwargs {"num_steps":1,"num_steps":2}', "(it: num_steps is there twice)"),
        (f"check --env-kwargs {9999 * '['}", "(it is not readable JSON: its brackets are nested too deeply)"),
        ('check --env-kwargs {"autoreset_mode":"Never"}', "autoreset_mode must be one of"),
        ('check --env-kwargs {"frameskip":4}', "frameskip"),
        ('play --env-kwargs {"num_envs":3}', "--env-kwargs has no num_envs"),
        ("check --num-steps 0", "num_steps must be at least 1, got 0"),
        (
            "check --backbone mnist",
            "or a folder of the zoo, got 'mnist'",
        ),
        ("evaluate --repetitions 0", "--repetitions must be at least 1, got 0"),
        ("evaluate --batch-size 0", "--batch-size must be at least 1, got 0"),
        ("evaluate --num-images 0", "more images than the 64 feature dimensions, got 0"),
        ("evaluate --num-images 64", "more images than the 64 feature dimensions, got 64"),
        (f"evaluate --num-images {10**23}", "num_images must be at most 9223372032559808511, one seed each"),
        ("evaluate --policy os:getcwd --num-images 70", "--policy os:getcwd must give an actor, called with"),
        ("evaluate --device cuda:99", "device 'cuda:99' cannot be used here"),
        ("evaluate --protocol adagen", "protocol must be one of digits for backbone 'digits', got 'adagen'"),
        (
            "evaluate --policy json:loads",
            "is called as (), or as (env); give --run for one that loads a run, got <function loads",
        ),
        ("evaluate --policy math:pi --run .", "must name a function that is called as (run_dir), got 3.14"),
        (
            "evaluate --policy math:sqrt --run . --device cpu",
            "must name a function that is called as (run_dir, device=...)",
        ),
        ("evaluate --run runs/x", "--run needs --policy, the function that loads the folder's policy"),
        ("play --run runs/x", "--run needs --policy, the function that loads the folder's policy"),
        ("evaluate --policy json --run .", "--policy must be MODULE:FUNCTION, got 'json'"),
        ("evaluate --policy json:x --run .", "--policy: module json has no 'x'"),
        ("evaluate --policy no_such_module:x --run .", "No module named 'no_such_module'"),
        ("bench --device cuda:99", "device 'cuda:99' cannot be used here"),
        ("bench --threads 0", "--threads must be at least 1, got 0"),
        ("bench --repeats 0", "repeats must be at least 1, got 0"),
        ("bench --num-images 8 0", "batch_sizes must be at least 1, got 0"),
        ("bench --dtype int8", "dtype must be one of float32, bfloat16, float16, got 'int8'"),
        ("play --num-images 0", "num_envs must be at least 1, got 0"),
        ("report no/such/run", "no/such/run is not the folder of a run"),
    ],
)
def test_a_users_mistake_is_one_line_and_status_two(capsys, command, message):
    assert cli.main(command.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    (line,) = output.err.splitlines()
    assert line.startswith(f"genenv {command.split()[0]}: ")
    assert message in line


@pytest.mark.parametrize("command", ["", "lst", "zoo build mnist", "evaluate --static --policy a:b"])
def test_a_command_that_does_not_exist_is_refused(capsys, command):
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    assert stop.value.code == 2
    assert "Traceback" not in capsys.readouterr().err
