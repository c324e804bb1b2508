import pytest
import torch

from genenv.contexts import Contexts
from genenv.rng import BatchRng

NAMES = [f"class {i}" for i in range(10)]


def draw(plan, num_envs=12, first_seed=0, episode=0):
    seeds = torch.arange(first_seed, first_seed + num_envs)
    return Contexts(NAMES, plan).draw(BatchRng(seeds, episode=episode))


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


@pytest.mark.parametrize("size", [1, 2, 3, 7, 12])
def test_a_group_is_the_seeds_of_one_quotient_wherever_the_batch_begins(size):
    whole = draw(f"grouped:{size}", 480)
    for first in range(0, 480, size):
        assert len(whole[first : first + size].unique()) == 1
    assert len(whole[::size].unique()) >= 9
    for first, number in ((101, 1), (100, 3), (57, 20), (size, size)):
        assert torch.equal(draw(f"grouped:{size}", number, first_seed=first), whole[first : first + number])


def test_groups_draw_anew_in_every_episode():
    assert not torch.equal(draw("grouped:4", 40), draw("grouped:4", 40, episode=1))


def test_two_groups_of_one_label_stay_two():
    contexts, rng = Contexts(NAMES[:1], "grouped:3"), BatchRng(torch.arange(2, 9))
    context = contexts.draw(rng)
    assert context.tolist() == [0] * 7
    assert contexts.group(rng, context).tolist() == [0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize("plan", ["uniform", "cycle", [4, 4, 1]])
def test_without_groups_the_images_of_one_context_are_one(plan):
    contexts, rng = Contexts(NAMES, plan), BatchRng(torch.arange(6))
    context = contexts.draw(rng)
    assert torch.equal(contexts.group(rng, context), context)


def test_listed_labels_are_dealt_out_in_turn():
    assert draw([7, 1, 4], 7).tolist() == [7, 1, 4, 7, 1, 4, 7]
    assert draw([7, 1, 4], 3, episode=1).tolist() == [1, 4, 7]


@pytest.mark.parametrize(
    "plan",
    ["random", "grouped", "grouped:0", "grouped:x", "cycle:2", f"grouped:{2**63}", f"grouped:{5000 * '9'}"],
)
def test_an_unknown_plan_is_refused(plan):
    with pytest.raises(
        ValueError, match=f"contexts must be 'uniform', 'cycle', 'grouped:G' .* or .*, got '{plan}'"
    ):
        Contexts(NAMES, plan)


@pytest.mark.parametrize("label", [10, -1, True, 1.0, "3"])
def test_a_label_that_does_not_exist_is_refused(label):
    with pytest.raises(ValueError, match=rf"context must be a label in 0..9, got {label!r}"):
        Contexts(NAMES, [0, label])


def test_an_empty_list_of_labels_is_refused():
    with pytest.raises(ValueError, match="contexts must name at least one label"):
        Contexts(NAMES, [])
