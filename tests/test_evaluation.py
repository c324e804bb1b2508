import dataclasses
import itertools
import json

import pytest
import torch

from genenv import evaluation as module
from genenv.actions import LatentActions
from genenv.envs.ode import ODESampler
from genenv.evaluation import Evaluator, evaluate, first_seed, pool
from genenv.metrics.intervals import student
from genenv.rng import MAX_SEED, Stream
from genenv.rollout import generate, static_actor
from genenv.tiers import tier_of

ENV_ID = "AdaGen/MaskGIT-v0"
NAMES = {"fid", "kid", "precision", "recall", "density", "coverage", "inception_score", "accuracy"}


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


def test_an_evaluation_says_where_its_numbers_come_from(evaluator, evaluation):
    extractor = evaluator.judge.extractor
    record = json.loads(json.dumps(evaluation.record()))
    assert record.pop("metrics") == evaluation.metrics
    assert record.pop("images_per_second") > 0
    assert len(record.pop("class_accuracy")) == 10
    assert record == {
        "protocol": "digits",
        "judge_sha256": extractor.sha256,
        "reference_sha256": extractor.reference.sha256,
        "num_images": 100,
        "label_plan": "cycle",
        "seeds": [0, 99],
        "intervals": {},
        "nfe": 4.0,
        "repetitions": 1,
    }


def test_images_judged_batch_by_batch_are_worth_as_much_as_all_at_once(evaluator, evaluation):
    episode = generate(evaluator.env, static_actor(evaluator.env), 100, stream=Stream.HELD_OUT)
    assert torch.equal(episode.images, evaluation.episode.images)
    at_once = evaluator.judge.measure(episode.images, episode.context)
    assert evaluation.metrics == pytest.approx(at_once, rel=1e-4)


def test_only_the_first_images_are_given_back(evaluator, evaluation, monkeypatch):
    for kept, expected in ((85, 80), (5, 40)):  # whole batches, one at least
        monkeypatch.setattr(module, "KEPT_IMAGES", kept)
        fewer = evaluator(static_actor(evaluator.env))
        assert torch.equal(fewer.episode.images, evaluation.episode.images[:expected])
        assert fewer.metrics == evaluation.metrics


def test_progress_and_intervals_are_told_where_they_are_asked_for(evaluator, evaluation):
    batches = []
    told = evaluator(static_actor(evaluator.env), intervals=True, progress=batches.append)
    assert batches == [40, 40, 20]
    assert told.metrics == evaluation.metrics
    assert set(told.intervals) == {"fid", "inception_score", "accuracy"}


@pytest.mark.parametrize("seed", [0, 3])
def test_a_repetition_shows_how_far_it_has_come(evaluator, monkeypatch, capsys, seed):
    monkeypatch.setattr("genenv.progress.time.monotonic", itertools.count(0, 20).__next__)
    found = evaluator.repetition(static_actor(evaluator.env), seed, "a policy", intervals=seed > 0)
    assert capsys.readouterr().err.splitlines() == [
        f"held-out images of a policy: {done} of 100" for done in (40, 80, 100)
    ]
    assert found.seeds == (first_seed(seed, 100), first_seed(seed, 100) + 99)
    assert bool(found.intervals) == (seed > 0)


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
    other = evaluator(static_actor(evaluator.env), first_seed(1, 100))
    assert other.episode.context.bincount().tolist() == [10] * 10
    assert not torch.equal(other.episode.images, evaluation.episode.images)


def test_repetitions_are_pooled_with_students_interval(evaluator, evaluation):
    other = evaluator(static_actor(evaluator.env), first_seed(1, 100))
    pooled, values = pool([evaluation, other]), (evaluation.metrics["fid"], other.metrics["fid"])
    assert pooled.metrics["fid"] == pytest.approx(sum(values) / 2)
    assert pooled.intervals.keys() == NAMES
    assert pooled.intervals["fid"] == student(values)
    assert pooled.seeds == (0, 199)
    assert (pooled.num_images, pooled.repetitions, pooled.nfe) == (100, 2, 4.0)
    assert pool([other]) is other


def test_the_operations_of_an_image_are_those_of_its_steps(evaluator, evaluation):
    flops = evaluator.flops(evaluation)
    twice = Evaluator(ENV_ID, {"num_steps": 8}, num_images=70)
    assert twice.flops(twice(static_actor(twice.env))) == pytest.approx(2 * flops, rel=0.1)


def next_latents(self, state, command, rng):
    return dataclasses.replace(state, latents=command, step=state.step + 1)


@pytest.mark.parametrize("kind", ["schedule", "physical", "latents"])
def test_operations_are_counted_on_what_reached_the_generator(monkeypatch, kind):
    if kind == "latents":  # actions that are no schedule, and too large before they are averaged
        monkeypatch.setattr(ODESampler, "actions", lambda *_: LatentActions((1, 8, 8), 1.0))
        monkeypatch.setattr(ODESampler, "advance", next_latents)
    counted, seen, advance = [], [], ODESampler.advance
    monkeypatch.setattr(module, "flops_per_image", lambda sampler, commands, *_: counted.extend(commands))
    monkeypatch.setattr(
        ODESampler,
        "advance",
        lambda self, state, command, rng: seen.append(command) or advance(self, state, command, rng),
    )
    mode = "physical" if kind == "physical" else "residual"
    kwargs = {"smoothing": 0.5, "num_steps": 4, "solver": "euler", "action_mode": mode}
    evaluator = Evaluator("AdaGen/DiT-v0", kwargs, num_images=70, batch_size=35)
    table = torch.tensor([0.9, -1.4, 1.2, 0.3, -1.0])
    table = (table + 3) / 6 if kind == "physical" else table

    def actor(observation):
        return (
            table[observation["step"][:, None]].expand(-1, 2)
            if kind != "latents"
            else (table[observation["step"][:, None, None, None]].expand(-1, 1, 8, 8))
        )

    found = evaluator(actor)
    del seen[5:]
    evaluator.flops(found)
    assert len(counted) == 5
    for command, received in zip(counted, seen, strict=True):
        if kind == "latents":
            assert torch.equal(command, received[: len(command)])
        else:
            assert all(torch.equal(value, received[name][: len(value)]) for name, value in command.items())


def test_counting_operations_leaves_a_generator_with_a_cache_as_it_was():
    evaluator = Evaluator("AdaGen/LlamaGen-v0", num_images=70, batch_size=35)
    actor = static_actor(evaluator.env)
    before = evaluator(actor)
    assert evaluator.flops(before) > 1e6
    assert evaluator(actor).metrics == before.metrics


@pytest.mark.parametrize("num_images", [1, 100, 2000])
def test_repetitions_share_no_seed(num_images):
    seeds = [range(first, first + num_images) for first in (first_seed(k, num_images) for k in range(5))]
    assert len(set().union(*seeds)) == 5 * num_images


@pytest.mark.parametrize("repetition", [10**18, 2**63 - 1, 2**63, 10**30])
@pytest.mark.parametrize("num_images", [1, 70, 2000, 50_000])
def test_a_large_repetition_has_seeds_that_exist_whatever_the_batch(repetition, num_images):
    one, other = (first_seed(k, num_images) for k in (repetition, repetition + 1))
    for first in (one, other):
        assert first % num_images == 0
        assert 0 <= first <= MAX_SEED - num_images - 2**20
    assert abs(one - other) >= num_images


def test_the_first_repetitions_follow_each_other():
    assert [first_seed(k, 2000) for k in (0, 1, 7, 10**15)] == [0, 2000, 14_000, 2 * 10**18]


def test_a_large_repetition_is_evaluated(evaluator):
    first = first_seed(10**18, 100)
    found = evaluator(static_actor(evaluator.env), first)
    assert found.seeds == (first, first + 99)
    assert found.episode.context.bincount().tolist() == [10] * 10


@pytest.mark.parametrize("env_id", ["AdaGen/MaskGIT-v0", "genenv:AdaGen/MaskGIT-v0"])
def test_an_id_may_name_its_module(env_id):
    evaluator = Evaluator(env_id, num_images=100)
    assert evaluator.env.spec.id == "AdaGen/MaskGIT-v0"
    assert evaluator.backbone == "digits"


def test_too_few_images_are_refused_before_a_generator_is_loaded(monkeypatch):
    monkeypatch.setattr("gymnasium.make_vec", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(
        ValueError, match="more images than the 64 feature dimensions, got 64: raise the number"
    ):
        Evaluator("AdaGen/MaskGIT-v0", num_images=64)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("Nope", "env_id must be one of AdaGen/MaskGIT-v0, .*, got 'Nope'"),
        ("CartPole-v1", "env_id must be one of AdaGen/MaskGIT-v0, .*, got 'CartPole-v1'"),
        ("AdaGen/MaskGTI-v0", "got 'AdaGen/MaskGTI-v0'; did you mean 'AdaGen/MaskGIT-v0'"),
        (
            "nomodule:AdaGen/MaskGIT-v0",
            "'nomodule:AdaGen/MaskGIT-v0' cannot be loaded: No module named 'nomodule'",
        ),
    ],
)
def test_an_unknown_id_is_refused(env_id, message):
    with pytest.raises(ValueError, match=message):
        Evaluator(env_id)


def test_held_out_images_share_no_random_number_with_training_and_tuning(evaluator):
    actor = static_actor(evaluator.env)
    images = [generate(evaluator.env, actor, 20, 5, stream).images for stream in Stream]
    for i, one in enumerate(images):
        for other in images[:i]:
            assert not (one == other).flatten(1).all(1).any()


def test_a_protocol_of_another_tier_is_refused():
    with pytest.raises(
        ValueError, match="protocol must be one of digits for backbone 'digits', got 'adagen'"
    ):
        Evaluator(ENV_ID, protocol="adagen")


def test_images_without_a_judge_have_no_metrics(monkeypatch):
    tier = dataclasses.replace(tier_of("digits"), judges={})
    monkeypatch.setattr("genenv.evaluation.tier_of", lambda backbone: tier)
    monkeypatch.setattr("genenv.metrics.judge.tier_of", lambda backbone: tier)
    with pytest.raises(ValueError, match="tier 'digits' has no judge"):
        Evaluator("AdaGen/MaskGIT-v0", {"num_steps": 1}, 6)
    evaluator = Evaluator("AdaGen/MaskGIT-v0", {"num_steps": 1}, 6, needs_judge=False)
    found = evaluator(static_actor(evaluator.env), intervals=True)
    assert (found.metrics, found.intervals, found.class_accuracy) == ({}, {}, [])
    assert (found.protocol, evaluator.floor()) == ("none", {})
    assert found.episode.images.shape == (6, 1, 8, 8)
    with pytest.raises(ValueError, match="tier 'digits' has no judge"):
        evaluator.judge  # noqa: B018
