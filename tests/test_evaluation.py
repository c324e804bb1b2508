import pytest
import torch

from genenv.evaluation import HELD_OUT_SEED, Evaluator, evaluate, held_out_seed
from genenv.rollout import static_actor

ENV_ID = "AdaGen/MaskGIT-v0"
NAMES = {"fid", "kid", "precision", "recall", "density", "coverage", "accuracy"}


@pytest.fixture(scope="module")
def evaluator():
    return Evaluator(ENV_ID, {"contexts": "uniform", "reward": "loo_fid"}, num_images=100, batch_size=40)


@pytest.fixture(scope="module")
def evaluation(evaluator):
    return evaluator(static_actor(evaluator.env))


def test_the_labels_are_balanced_and_the_images_as_many_as_asked_for(evaluation):
    assert set(evaluation.metrics) == NAMES
    assert evaluation.episode.images.shape == (100, 1, 8, 8)
    assert evaluation.episode.context.bincount().tolist() == [10] * 10
    assert evaluation.episode.observations == {}
    assert not evaluation.episode.rewards.any()  # the judge pays nothing


def test_an_evaluation_can_be_repeated(evaluator, evaluation):
    again = evaluator(static_actor(evaluator.env))
    assert torch.equal(again.episode.images, evaluation.episode.images)
    assert again.metrics == evaluation.metrics


def test_the_one_call_form_evaluates_the_same(evaluation):
    actor = lambda observation: torch.zeros(len(observation["context"]), 4)  # noqa: E731
    assert evaluate(ENV_ID, actor, num_images=100).metrics == pytest.approx(
        evaluation.metrics, rel=1e-3, abs=1e-3
    )


def test_other_seeds_give_other_images(evaluator, evaluation):
    other = evaluator(static_actor(evaluator.env), held_out_seed(1, 100))
    assert other.episode.context.bincount().tolist() == [10] * 10
    assert not torch.equal(other.episode.images, evaluation.episode.images)


@pytest.mark.parametrize("num_images", [1, 100, 2000])
def test_repetitions_share_no_seed_with_each_other_or_with_training(num_images):
    seeds = [range(first, first + num_images) for first in (held_out_seed(k, num_images) for k in range(5))]
    assert len(set().union(*seeds)) == 5 * num_images
    assert min(min(s) for s in seeds) == HELD_OUT_SEED > 2**32


@pytest.mark.parametrize("env_id", ["AdaGen/MaskGIT-v0", "genenv:AdaGen/MaskGIT-v0"])
def test_an_id_may_name_its_module(env_id):
    evaluator = Evaluator(env_id, num_images=2)
    assert evaluator.env.spec.id == "AdaGen/MaskGIT-v0"
    assert evaluator.backbone == "digits"


@pytest.mark.parametrize("env_id", ["Nope", "other:AdaGen/MaskGIT-v0"])
def test_an_unknown_id_is_refused(env_id):
    with pytest.raises(ValueError, match=f"env_id must be one of AdaGen/MaskGIT-v0, .*, got '{env_id}'"):
        Evaluator(env_id)
