"""Grids of noise levels against each other: what each is, that they start alike, and what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from baselines.common import main
from baselines.grids import Config, Flow, PointScore, draw, read_run, run, table_of, tuned
from genenv.export import write_schedule
from genenv.grids import edm, flow_time, log_snr, uniform
from genenv.metrics.wasserstein import normal_grid_error, wasserstein
from genenv.rng import Stream
from genenv.solvers import sample

MIXTURE = "ART/GaussianMixture-v0"
NORMAL = Config(
    env_id=MIXTURE, env_kwargs={"backbone": "normal"}, solver="euler", nfe=(2, 5), seeds=(3,), num_images=50
)
PLANE = dataclasses.replace(NORMAL, env_kwargs={"backbone": "mixture-2d"}, num_images=120, flow_images=30)


def levels_of(results):
    return {(r.method, r.decisions): torch.tensor(r.schedule["sigma"], dtype=torch.float64) for r in results}


def test_the_normal_under_euler_has_its_exact_error():
    names = ("uniform", "edm_to_0", "log_snr", "closed_form", "closed_form_heun")
    config = dataclasses.replace(NORMAL, grids=names)
    results = list(run(config))
    assert [(r.method, r.decisions) for r in results] == [
        (f"{name}, euler", k) for k in (2, 5) for name in config.grids
    ]
    found = {(r.method, r.decisions): round(r.metrics["w2"], 3) for r in results}
    assert found["uniform, euler", 5] == 0.212
    assert found["edm_to_0, euler", 5] == 0.316
    assert found["closed_form, euler", 2] == 0.349
    assert found["closed_form, euler", 5] < found["closed_form_heun, euler", 5]
    for (method, steps), grid in levels_of(results).items():
        assert len(grid) == steps + 1
        assert found[method, steps] == round(normal_grid_error(grid), 3)


@pytest.mark.parametrize(("solver", "backbone"), [("heun", "normal"), ("rk4", "mixture-1d")])
def test_a_fine_grid_takes_points_where_the_exact_flow_does(solver, backbone):
    config = dataclasses.replace(
        NORMAL, env_kwargs={"backbone": backbone}, solver=solver, nfe=(), grids=("cosine",)
    )
    few, *_, many = run(config)
    assert many.decisions == 18
    assert many.metrics["w2"] < 0.02 < 5 * few.metrics["w2"]


def test_points_are_compared_with_the_exact_flow_of_the_same_noise():
    flow = Flow(PLANE)
    score, seeds = PointScore(flow), range(40)
    context, rng = flow.rng(seeds, Stream.HELD_OUT)
    x = flow.sampler.noise(context, rng)
    exact, _ = sample(flow.sampler.denoiser(context), x, edm(400, flow.sigma_max, 0.0, rho=5.0), "heun")
    levels = uniform(4, flow.sigma_max)
    ours, _ = sample(flow.sampler.denoiser(context), x, levels, "euler")
    assert score(levels, seeds, Stream.HELD_OUT)["w2"] == pytest.approx(wasserstein(ours, exact), abs=1e-3)
    assert score(levels, seeds, Stream.TUNING) != score(levels, seeds, Stream.HELD_OUT)


def test_hand_made_grids_are_those_of_the_clocks_noise_levels():
    config = Config(
        env_kwargs={"network": "dit", "sigma_max": 10.0, "sigma_min": 0.05},
        nfe=(3,),
        seeds=(0,),
        num_images=70,
        grids=("edm", "log_snr", "flow_time"),
    )
    results = list(run(config))
    found = levels_of(results)
    for name, grid in (
        ("edm", edm(2, 10.0, 0.05)),
        ("log_snr", log_snr(2, 10.0, 0.05)),
        ("flow_time", flow_time(2, 10.0)),
    ):
        torch.testing.assert_close(found[f"{name}, heun", 2], grid)
    assert {"fid", "recall", "accuracy"} <= results[0].metrics.keys()
    assert results[0].metrics["fid"] > 3 * results[2].metrics["fid"]  # whose last step is no waste


def test_the_tuned_grid_is_the_best_candidate_on_images_that_are_not_held_out():
    flow = Flow(dataclasses.replace(PLANE, tuning_images=60))
    score, streams = PointScore(flow), set()

    def counted(levels, seeds, stream):
        streams.add((seeds, stream))
        return score(levels, seeds, stream)

    counted.key = "w2"
    levels, images = tuned(5, flow, counted, seed=2)
    assert streams == {(range(120, 180), Stream.TUNING)}
    assert images == 60 * 12
    plain = edm(5, flow.sigma_max, flow.sigma_min)
    assert score(levels, range(60), Stream.HELD_OUT)["w2"] < score(plain, range(60), Stream.HELD_OUT)["w2"]


def learned(folder, seed, grids, name=None):
    folder.mkdir()
    write_schedule(folder / "schedule.json", grids)
    rows = [{"images": 0}, {"images": 640}]
    summary = {"name": name, "agent": "art", "seed": seed, "seconds": 12.0, "rows": rows}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_run_is_measured_on_the_images_of_its_seed_and_a_file_on_all(tmp_path):
    grids = {k: edm(k, 3.0, 0.0, rho=2.0) for k in (2, 3)}
    runs = [learned(tmp_path / str(seed), seed, grids) for seed in (0, 1)]
    alone = tmp_path / "mine.json"
    write_schedule(alone, grids)
    config = dataclasses.replace(NORMAL, seeds=(0, 1, 2), nfe=(2, 5), grids=("edm",), runs=(*runs, alone))
    results = list(run(config))
    assert [r.seed for r in results if r.method == "art, learned, euler" and r.decisions == 2] == [0, 1]
    assert [r.seed for r in results if r.method == "mine, euler" and r.decisions == 5] == [0, 1, 2]
    of_run = next(r for r in results if "learned" in r.method)
    assert (of_run.images, of_run.seconds) == (640, 12.0)
    table = table_of(results)
    assert [str(column.header) for column in table.columns] == ["grid", "K = 2", "K = 5"]
    assert table.row_count == 3
    draw(results, "euler", tmp_path / "pictures")
    assert all((tmp_path / "pictures" / f"{name}.png").stat().st_size > 5000 for name in ("metric", "steps"))


def test_a_result_is_told_with_its_w2(capsys, monkeypatch):
    words = ["--env-id", MIXTURE, "--env-kwargs", '{"backbone": "normal"}', "--solver", "euler", "--nfe", "5"]
    monkeypatch.setattr("sys.argv", ["grids", *words, "--grids", "uniform", "--seeds", "3"])
    assert main(Config, run, None, table_of) == 0
    told = capsys.readouterr()
    assert "uniform, euler, seed 3: w2 0.212" in told.err.splitlines()
    assert "0.212" in told.out


def test_a_schedule_of_another_noise_level_is_refused(tmp_path):
    folder = learned(tmp_path / "run", 3, {2: edm(2, 5.0)}, name="mine")
    with pytest.raises(
        ValueError, match="must start at the noise level 3, got mine, learned, which starts at 5"
    ):
        list(run(dataclasses.replace(NORMAL, runs=(folder,))))


def test_an_unfinished_run_is_refused(tmp_path):
    folder = learned(tmp_path / "run", 0, {2: edm(2, 3.0)})
    (folder / "summary.json").write_text('{"name": null}')
    with pytest.raises(ValueError, match=r"summary.json must be that of a finished run, but lacks 'agent'"):
        read_run(folder)
    (folder / "schedule.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*schedule\.json"):
        read_run(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"grids": ("edm", "karras")}, "grids must be of uniform, edm, .* got 'karras'"),
        ({"grids": ()}, "there must be grids or runs to compare, got none"),
        ({"solver": "heun", "nfe": (3, 4)}, r"nfe of heun must be 2 \(K - 1\) \+ 1 for K steps, got 4"),
        ({"nfe": (0,)}, "for K steps, got 0"),
        ({"pictures": Path("p"), "grids": ("edm",) * 9}, "pictures hold at most 8 grids, got 9 and 0 runs"),
        ({"tuning_images": 1}, "tuning_images must be finite and at least 2"),
    ],
)
def test_settings_that_mean_nothing_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NORMAL, **change)


def test_an_environment_without_a_clock_is_refused():
    with pytest.raises(ValueError, match="must name an environment with a clock, got 'AdaGen/SiT-v0'"):
        list(run(dataclasses.replace(NORMAL, env_id="AdaGen/SiT-v0", env_kwargs={})))
