import dataclasses
import json
import shutil

import pytest
import torch

from baselines import guidance
from baselines.guidance import Config, run, speed
from genenv.checkpoints import save_tensors
from genenv.evaluation import Evaluator, first_seed
from genenv.export import GENERATOR
from genenv.rewards import make_reward
from genenv.rollout import static_actor
from genenv.tiers import load_part, write_manifest

SMALL = Config(weights=(0.0, 2.0), seeds=(3,), num_images=80)


@pytest.fixture
def tuned(tmp_path):
    """Returns the directory of a run of agents.grpo whose generator makes one token alone."""
    folder = tmp_path / "run" / GENERATOR
    folder.mkdir(parents=True)
    network = load_part("llamagen", "digits")
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["output.weight"].zero_()
    save_tensors(state, folder / "llamagen.safetensors")
    write_manifest(folder, "digits", base="digits")
    summary = {
        "name": None,
        "agent": "grpo",
        "seed": 3,
        "env_kwargs": {"backbone": "digits", "network": "llamagen"},
        "seconds": 7.0,
        "rows": [{}, {"images": 90}],
    }
    (tmp_path / "run" / "summary.json").write_text(json.dumps(summary))
    return tmp_path / "run"


def test_each_weight_is_that_of_the_whole_schedule(monkeypatch):
    monkeypatch.setattr(guidance, "speed", lambda env, actor: 1.0)
    none, some = run(SMALL)
    assert (none.method, some.method) == ("guidance 0", "guidance 2")
    assert set(none.schedule["guidance_weight"]) == {0.0}
    assert some.schedule["guidance_weight"] == pytest.approx([2.0] * 4)
    assert (none.metrics["nfe"], some.metrics["nfe"]) == (16, 32)
    evaluator = Evaluator(SMALL.env_id, {"guidance_weight": 2.0, "schedule": "published"}, 80)
    expected = evaluator(static_actor(evaluator.env), first_seed(3, 80))
    assert {name: some.metrics[name] for name in expected.metrics} == pytest.approx(expected.metrics)
    paid = make_reward("hpsv2", "digits", "cpu")(expected.episode.images, expected.episode.context)
    assert some.metrics["hpsv2"] == pytest.approx(paid.mean().item())


def test_tuned_generators_are_measured_without_guidance_on_their_own_seed(tuned, monkeypatch):
    monkeypatch.setattr(guidance, "speed", lambda env, actor: 1.0)
    *_, found = run(dataclasses.replace(SMALL, weights=(0.0,), runs=(tuned,), name="all"))
    assert (found.method, found.seed, found.images, found.seconds) == ("grpo, tuned, all", 3, 90, 7.0)
    assert found.metrics["nfe"] == 16
    assert found.metrics["accuracy"] < 0.5
    assert found.env_kwargs["backbone"] == str(tuned / GENERATOR)
    assert set(found.schedule["guidance_weight"]) == {0.0}


def test_the_pictures_show_the_weights_and_the_runs(tuned, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(guidance, "speed", lambda env, actor: 1.0)
    monkeypatch.setattr(guidance, "save_frontier", lambda path, *data: drawn.update({path.name: data}))
    monkeypatch.setattr(guidance, "save_samples", lambda path, *data: drawn.update({path.name: data}))
    config = dataclasses.replace(
        SMALL,
        weights=(2.0, 0.0, 0.5),
        runs=(tuned,),
        pictures=tmp_path / "new" / "folder",
        against=("recall", "hpsv2"),
        name="x",
    )
    results = list(run(config))
    metrics, line, points = drawn["frontier.png"]
    assert metrics == ("recall", "hpsv2")
    assert list(line) == ["0", "0.5", "2"]
    assert line["2"] == ([results[0].metrics["recall"]], [results[0].metrics["hpsv2"]])
    assert points == {"grpo, tuned, x": ([results[3].metrics["recall"]], [results[3].metrics["hpsv2"]])}
    rows, labels = drawn["samples.png"]
    assert list(rows) == ["guidance 0", "guidance 0.5", "grpo, tuned"]
    assert len(labels) == len(rows["grpo, tuned"]) == 80
    assert labels[:3] == ["zero", "one", "two"]


def test_the_pictures_are_written(tuned, tmp_path):
    list(run(dataclasses.replace(SMALL, runs=(tuned,), pictures=tmp_path / "pictures", rewards=())))
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"frontier.png", "samples.png"}


def test_the_speed_is_that_of_the_fastest_batch(monkeypatch):
    clock = iter([0.0, 5.0, 5.0, 7.0, 7.0, 11.0])
    monkeypatch.setattr(guidance.time, "perf_counter", lambda: next(clock))
    batches = []

    class Batch:
        images = torch.zeros(1)

    monkeypatch.setattr(
        guidance, "generate", lambda env, actor, n, seed, stream: batches.append(seed) or Batch
    )
    env = Evaluator(SMALL.env_id, {}, 80).env
    assert speed(env, static_actor(env)) == 80 / 2
    assert batches == [0, 80, 160]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": ()}, r"weights must be different finite numbers from 0 on, got \(\)"),
        ({"weights": (1.0, 1.0)}, "weights must be different finite"),
        ({"weights": (-0.5,)}, "weights must be different finite"),
        ({"weights": (float("inf"),)}, "weights must be different finite"),
        ({"against": ("accuracy", "beauty")}, "against must be two of fid, .* got 'beauty'"),
        (
            {"against": ("accuracy", "hpsv2"), "rewards": ("clip",)},
            "against must be two of fid, .* got 'hpsv2'",
        ),
        ({"against": ("w2", "fid")}, "against must be two of fid, .* got 'w2'"),
        ({"rewards": ("none",)}, "rewards must be of single images, got 'none'"),
        ({"rewards": ("beauty",)}, "reward must be one of none, default, .*got 'beauty'"),
    ],
)
def test_what_cannot_be_compared_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        next(iter(run(dataclasses.replace(SMALL, **fields))))


def test_a_run_without_a_tuned_generator_is_refused(tuned, tmp_path):
    shutil.rmtree(tuned / GENERATOR)
    config = dataclasses.replace(SMALL, weights=(0.0,), rewards=(), runs=(tuned,))
    with pytest.raises(ValueError, match=r"runs must be those of agents\.grpo that tuned a generator, got"):
        list(run(config))
    with pytest.raises(FileNotFoundError):
        list(run(dataclasses.replace(config, runs=(tmp_path / "none",))))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"env_id": "AdaGen/VQGAN-v0"},
            "runs must have tuned a network of vqgan, vq of the backbone 'digits', got",
        ),
        ({"env_kwargs": {"backbone": "random:digits"}}, "which tuned 'llamagen' of 'digits'"),
    ],
)
def test_a_run_that_tuned_another_network_is_refused(tuned, config, message):
    with pytest.raises(ValueError, match=message):
        next(iter(run(dataclasses.replace(SMALL, runs=(tuned,), **config))))


def test_more_names_than_fit_in_a_picture_are_refused_at_once(tuned, tmp_path):
    paths = []
    for i in range(5):
        paths.append(tmp_path / f"run{i}")
        shutil.copytree(tuned, paths[-1])
        summary = json.loads((tuned / "summary.json").read_text())
        (paths[-1] / "summary.json").write_text(json.dumps(summary | {"name": f"n{i}"}))
    with pytest.raises(ValueError, match="runs of at most 4 names fit in a picture"):
        next(iter(run(dataclasses.replace(SMALL, runs=tuple(paths), pictures=tmp_path))))


def test_a_damaged_summary_is_refused(tuned):
    (tuned / "summary.json").write_text("{}")
    with pytest.raises(ValueError, match="must be that of a finished run, but lacks 'name'"):
        list(run(dataclasses.replace(SMALL, weights=(0.0,), rewards=(), runs=(tuned,))))
