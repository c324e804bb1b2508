import pytest
import torch

from genenv.contexts import ClassLabels
from genenv.rng import BatchRng


def draw(plan, num_envs=12, first_seed=0, episode=0, num_classes=10):
    seeds = torch.arange(first_seed, first_seed + num_envs)
    return ClassLabels(num_classes, plan).draw(BatchRng(seeds, episode=episode))


def test_uniform_labels_take_every_class_equally_often():
    counts = torch.bincount(draw("uniform", 20000), minlength=10)
    assert counts.sum() == 20000
    assert (counts - 2000).abs().max() < 5 * (20000 * 0.1 * 0.9) ** 0.5


def test_a_uniform_label_depends_on_its_seed_alone():
    assert torch.equal(draw("uniform", 6, first_seed=4), draw("uniform", 12)[4:10])


def test_uniform_labels_change_with_the_episode():
    assert not torch.equal(draw("uniform"), draw("uniform", episode=1))


def test_cycled_labels_are_seed_plus_episode():
    assert draw("cycle", 12, first_seed=3).tolist() == [(3 + i) % 10 for i in range(12)]
    assert draw("cycle", 12, first_seed=3, episode=5).tolist() == [(8 + i) % 10 for i in range(12)]


def test_grouped_labels_are_shared_by_neighbours_and_differ_between_groups():
    groups = draw("grouped:4", 400).view(100, 4)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique()) == 10


def test_groups_must_fill_the_batch():
    with pytest.raises(ValueError, match="num_envs must be a multiple of the group size 5, got 12"):
        draw("grouped:5", 12)


def test_listed_labels_are_dealt_out_in_turn():
    assert draw([7, 1, 4], 7).tolist() == [7, 1, 4, 7, 1, 4, 7]
    assert draw([7, 1, 4], 3, episode=1).tolist() == [1, 4, 7]


@pytest.mark.parametrize("plan", ["random", "grouped", "grouped:0", "grouped:x", "cycle:2"])
def test_an_unknown_plan_is_refused(plan):
    with pytest.raises(
        ValueError, match=f"contexts must be 'uniform', 'cycle', 'grouped:G' or .*, got '{plan}'"
    ):
        ClassLabels(10, plan)


@pytest.mark.parametrize("label", [10, -1])
def test_a_label_that_does_not_exist_is_refused(label):
    with pytest.raises(ValueError, match=rf"context must be a label in 0..9, got {label}"):
        ClassLabels(10, [0, label])


def test_an_empty_list_of_labels_is_refused():
    with pytest.raises(ValueError, match="contexts must name at least one label"):
        ClassLabels(10, [])
