import gymnasium as gym
import pytest
import torch

from baselines.common import StaticSchedules, static_kwargs
from baselines.static import Config, best_of, combinations, run, usual_grid
from genenv.make import own_arguments
from genenv.registration import PARADIGMS
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


def test_combinations_are_those_of_all_values():
    assert combinations({"a": [0, 1], "b": [None, "x"]}) == [
        {"a": 0, "b": None},
        {"a": 0, "b": "x"},
        {"a": 1, "b": None},
        {"a": 1, "b": "x"},
    ]


@pytest.mark.parametrize("grid", [{}, {"a": list(range(101)), "b": list(range(10))}])
def test_a_grid_of_no_or_too_many_combinations_is_refused(grid):
    with pytest.raises(ValueError, match=r"settings must have 1 to 1000 combinations, got (0|1010)"):
        combinations(grid)


def test_the_lowest_score_is_chosen_and_reported():
    found, reports = [{"a": 3.0}, {"a": 1.0}, {"a": 2.0}, {"a": 1.0, "b": 0}], []
    chosen = best_of(found, lambda settings: settings["a"], lambda *report: reports.append(report))
    assert chosen is found[1]
    assert reports == [(n, 4, f"best FID {3 if n == 1 else 1:.2f}") for n in range(1, 5)]


def test_tuning_finds_the_best_guidance_of_a_toy(toy, capsys):
    config = {"env_kwargs": toy, "seeds": (0,), "num_images": 200, "tuning_images": 200}
    (plain,) = run(Config(**config))
    (tuned,) = run(Config(**config, only="tuned", settings={"guidance": [0, 1, 2, 3, 4]}))
    assert (plain.method, tuned.method) == ("hand-crafted", "tuned")
    assert (
        'tuned, seed 0: {"guidance": 3}' in capsys.readouterr().err
    )  # 1.5 in the mean, but where it counts for 0
    assert tuned.schedule["brightness"] == plain.schedule["brightness"]
    assert tuned.metrics["fid"] < 0.8 * plain.metrics["fid"]
    assert (plain.images, tuned.images) == (0, 5 * 200)


def test_a_setting_that_the_environment_does_not_take_is_refused(toy):
    config = Config(env_kwargs=toy, only="tuned", settings={"colour": [1]}, num_images=100)
    with pytest.raises(ValueError, match=r"settings must be those of the environment's schedule: .*'colour'"):
        next(iter(run(config)))


@pytest.mark.parametrize("settings", [{"guidance": 1}, {"guidance": []}, {"guidance": "12"}])
def test_a_setting_without_a_list_of_values_is_refused(settings):
    with pytest.raises(ValueError, match="settings must give every setting a list of values, got guidance"):
        Config(settings=settings)


def test_where_a_paradigm_has_no_grid_the_command_asks_for_one():
    with pytest.raises(ValueError, match="settings must say what to tune of ART/Clock-v0"):
        next(iter(run(Config(env_id="ART/Clock-v0", only="tuned", num_images=100))))


@pytest.mark.parametrize("env_id", [i for i in PARADIGMS if i.startswith("AdaGen/")])
def test_every_grid_is_of_settings_that_the_paradigm_has(env_id):
    names = {name for grid in [usual_grid(env_id)] for name in grid}
    assert names <= set(own_arguments(env_id))


def test_a_tier_with_a_schedule_of_its_own_has_the_published_row_too():
    config = {"env_id": "AdaGen/DiT-v0", "env_kwargs": {"num_steps": 2}, "seeds": (3,), "num_images": 100}
    own, published = run(Config(**config))
    assert (own.method, published.method) == ("hand-crafted", "published")
    assert (own.schedule["guidance_weight"][0], published.schedule["guidance_weight"][0]) == (0, 1)
    (alone,) = run(Config(**config, only="published"))
    assert alone == published
    given = config | {"env_kwargs": {"num_steps": 2, "schedule": "published"}}
    (result,) = run(Config(**given))
    assert result.metrics == published.metrics
    with pytest.raises(ValueError, match="is the published one: use --only hand-crafted"):
        next(iter(run(Config(**given, only="published"))))


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
