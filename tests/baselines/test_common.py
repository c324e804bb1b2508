import dataclasses
import io

import pytest
import torch
from rich.console import Console

from baselines.common import (
    Result,
    StaticSchedules,
    handcrafted,
    held_out_seed,
    interval,
    parse_json,
    read_results,
    schedule_actor,
    table_of,
    tuning_seed,
    write_results,
)

RESULT = Result(
    method="static",
    env_id="AdaGen/MaskGIT-v0",
    env_kwargs={"num_steps": 2, "observe": ["step"]},
    seed=0,
    metrics=dict.fromkeys(("fid", "kid", "precision", "recall", "density", "coverage", "accuracy"), 0.125),
    images=1000,
    seconds=1.5,
    schedule={"mask_ratio": [0.1, 1e-9 / 3]},
)


def test_results_survive_the_file_and_leave_nothing_else(tmp_path):
    results = [RESULT, dataclasses.replace(RESULT, seed=1, images=7)]
    write_results(tmp_path / "deep" / "results.json", results)
    assert read_results(tmp_path / "deep" / "results.json") == results
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["results.json"]


def test_the_table_has_a_row_for_each_method():
    results = [RESULT, dataclasses.replace(RESULT, seed=1), dataclasses.replace(RESULT, method="other")]
    console = Console(file=io.StringIO(), width=200)
    console.print(table_of(results))
    lines = [line for line in console.file.getvalue().splitlines() if "static" in line or "other" in line]
    assert len(lines) == 2
    assert "0.125 ± 0.000" in lines[0]
    assert "±" not in lines[1]


def test_the_interval_is_students():
    assert interval([1.0, 2.0, 3.0]) == "2.000 ± 2.484"  # t_{0.975, 2} = 4.3027, times 1 / sqrt(3)


def test_no_two_repetitions_share_a_seed_and_tuning_shares_none_with_the_evaluation():
    ranges = [
        range(first(seed, 100), first(seed, 100) + 100)
        for first in (tuning_seed, held_out_seed)
        for seed in range(3)
    ]
    assert len(set().union(*ranges)) == 600


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_keyword_arguments_must_be_a_json_object(text):
    with pytest.raises(ValueError, match="env_kwargs must be a JSON object"):
        parse_json(text)


def test_a_schedule_actor_plays_the_row_of_each_step():
    table = torch.arange(6.0).view(3, 2)
    assert schedule_actor(table)({"step": torch.tensor([1, 1])}).tolist() == [[2, 3], [2, 3]]
    assert schedule_actor(torch.stack([table, -table]))({"step": torch.tensor([2, 2])}).tolist() == [
        [4, 5],
        [-4, -5],
    ]


def test_candidates_share_their_seeds_and_do_not_depend_on_the_batch():
    kwargs = {"num_steps": 2}
    small, large = (StaticSchedules("AdaGen/MaskGIT-v0", kwargs, batch_size) for batch_size in (4, 7))
    static = handcrafted(small.params)
    other = static * torch.tensor([1.0, 1.0, 3.0, 1.0])
    tables = torch.stack([static, other, static])
    images = small(tables, 5, seed=3)
    assert images.shape == (3, 5, 1, 8, 8)
    assert torch.equal(images[0], images[2])
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images, large(tables, 5, seed=3))
