import gymnasium as gym
import pytest
import torch

from baselines import static
from baselines.common import StaticSchedules, static_kwargs
from baselines.static import Config, best_schedule, guidance_schedules, run
from genenv.envs.maskgit import schedule
from genenv.rng import Stream
from genenv.rollout import run_episode, schedule_actor, static_actor
from genenv.schedules import handcrafted


def test_the_handcrafted_table_gives_the_images_of_the_zero_action():
    kwargs = {"reward": "none", "contexts": "cycle", "autoreset_mode": "Disabled"}
    residual = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=8, **kwargs)
    physical = gym.make_vec("AdaGen/MaskGIT-v0", num_envs=8, **static_kwargs(kwargs))
    zero = run_episode(residual, static_actor(residual), seed=5)
    table = handcrafted(residual.unwrapped.actions.params)
    played = run_episode(physical, schedule_actor(table), seed=5)
    assert torch.equal(zero.images, played.images)
    assert all(torch.equal(zero.schedule[name], played.schedule[name]) for name in zero.schedule)
    assert torch.equal(
        zero.images, StaticSchedules("AdaGen/MaskGIT-v0", {}, 8)(table[None], 8, 5, Stream.TRAINING)[0]
    )


def test_the_grid_changes_the_guidance_only():
    params = schedule(4, guidance_weight=1.0)
    static = handcrafted(params)
    ramp0, ramp1, ramp2, constant0, constant1, constant2 = guidance_schedules(params, [0.0, 1.0, 2.0])
    assert torch.equal(ramp1, static)
    assert torch.equal(ramp2[:, 3], 2 * static[:, 3])
    assert torch.equal(ramp0, constant0)
    assert constant1[:, 3].tolist() == [1.0] * 4
    assert torch.equal(constant2[:, :3], static[:, :3])


def test_the_default_grid_runs_from_no_guidance_to_three():
    assert Config().grid == [0.25 * i for i in range(13)]


def test_the_lowest_score_is_chosen_and_reported():
    tables, reports = torch.tensor([[[3.0]], [[1.0]], [[2.0]]]), []
    chosen = best_schedule(tables, lambda table: table.item(), lambda *report: reports.append(report))
    assert chosen.item() == 1.0
    assert reports == [(1, 3, "best FID 3.00"), (2, 3, "best FID 1.00"), (3, 3, "best FID 1.00")]


def test_tuning_finds_the_best_guidance_of_a_toy(toy):
    results = list(run(Config(env_kwargs=toy, seeds=(0,), num_images=200, tuning_images=200, step=0.5)))
    assert [result.method for result in results] == ["hand-crafted", "guidance tuned"]
    plain, tuned = results
    assert tuned.schedule["guidance_weight"] == [1.5, 1.5]
    assert tuned.schedule["brightness"] == plain.schedule["brightness"]
    assert tuned.metrics["fid"] < 0.8 * plain.metrics["fid"]
    assert (plain.images, tuned.images) == (0, 2 * 7 * 200)


@pytest.mark.parametrize(
    ("only", "methods"), [("hand-crafted", ["hand-crafted"]), ("tuned", ["guidance tuned"])]
)
def test_one_row_alone_can_be_asked_for(toy, only, methods):
    results = run(Config(env_kwargs=toy, only=only, seeds=(4,), num_images=100, tuning_images=70, step=3.0))
    assert [(result.method, result.seed) for result in results] == [(method, 4) for method in methods]


def test_without_guidance_there_is_the_hand_crafted_row_alone(toy, monkeypatch):
    monkeypatch.setattr(static, "GUIDANCE", "temperature")
    results = list(run(Config(env_kwargs=toy, seeds=(1, 5), num_images=100)))
    assert [(result.method, result.seed) for result in results] == [("hand-crafted", 1), ("hand-crafted", 5)]
    with pytest.raises(ValueError, match="no temperature to tune, its parameters are brightness, guidance"):
        next(iter(run(Config(env_kwargs=toy, only="tuned", num_images=100))))


def test_a_grid_of_noise_levels_is_a_hand_crafted_schedule():
    kwargs = {"solver": "euler", "num_steps": 2, "guidance_weight": 0.01}
    config = {"env_id": "AdaGen/SiT-v0", "only": "hand-crafted", "seeds": (0,), "num_images": 100}
    good, bad = (
        next(iter(run(Config(env_kwargs=kwargs | {"grid": grid}, **config))))
        for grid in ([20.0, 1.0, 0.0], "edm")
    )
    assert good.schedule["time"] == pytest.approx([1 / 21, 1 / 2, 1], abs=1e-5)
    assert good.metrics["fid"] < 0.3 * bad.metrics["fid"]


def test_a_name_tells_configurations_apart(toy):
    (result,) = run(Config(env_kwargs=toy, only="hand-crafted", name="mine", seeds=(0,), num_images=100))
    assert result.method == "hand-crafted, mine"
    assert (result.decisions, result.num_images, result.protocol) == (2, 100, "digits")


def test_without_guidance_there_is_nothing_to_tune():
    with pytest.raises(ValueError, match="no guidance_weight to tune"):
        guidance_schedules(schedule(4, guidance_weight=1.0)[:3], [0.0])
