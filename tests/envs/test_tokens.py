import math

import gymnasium as gym
import pytest
import torch

from genenv.actions import TokenActions
from genenv.bench import network_calls
from genenv.check import check
from genenv.envs import tokens
from genenv.envs.tokens import NETWORKS, TokenSampler, make_sampler
from genenv.models.llamagen import LlamaGenTransformer
from genenv.rng import BatchRng, Purpose
from genenv.rollout import generator_policy, run_episode
from genenv.tiers import load_part
from genenv.vector_env import unwrapped

ENV_ID = "PolicyTuning/Tokens-v0"
RASTER = {"llamagen": "AdaGen/LlamaGen-v0", "vqgan": "AdaGen/VQGAN-v0"}
GRID, CODES, CLASSES, DIM = 3, 7, 2, 16
LENGTH = GRID**2


def make(num_envs=5, **kwargs):
    return gym.make_vec(
        ENV_ID, num_envs=num_envs, **{"reward": "none", "autoreset_mode": "Disabled"} | kwargs
    )


def small(guidance_weight=0.0, with_network=True):
    """Returns a small sampler, its network and the network's calls, [(rows, entries)]."""
    torch.manual_seed(0)
    network, calls = LlamaGenTransformer(GRID, CODES, DIM, 2, 2, multiple_of=8, num_classes=CLASSES), []
    for parameter in network.parameters():
        parameter.data.mul_(5)  # far from uniform
    network.eval().requires_grad_(False)
    sampler = TokenSampler(
        lambda grid: grid[:, None] / CODES,
        network if with_network else None,
        grid_size=GRID,
        codebook_size=CODES,
        num_contexts=CLASSES,
        image_shape=(1, GRID, GRID),
        guidance_weight=guidance_weight,
    )

    def read(entries, labels, start, cache, rows):
        calls.append((len(entries), entries.shape[1] + (labels is not None)))
        return network.read(entries, labels, start, cache, rows)

    if with_network:
        sampler.read = read
    return sampler, network, calls


def start(sampler, number):
    rng = BatchRng(torch.arange(number))
    return sampler.start(torch.arange(number) % CLASSES, rng), rng


def random_tokens(number, length=LENGTH, codes=CODES, seed=0):
    return torch.randint(codes, (length, number), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("contexts", ["uniform", "grouped:3"])
def test_it_keeps_every_promise_with_predictions_too(network, contexts):
    observe = ["features", "logits", "tokens", "step", "context", "prev_action"]
    kwargs = {"observe": observe, "network": network, "guidance_weight": 0.7, "contexts": contexts}
    assert [found for found in check(ENV_ID, **kwargs) if found[1] is not None] == []


def test_each_action_is_the_next_token():
    env = make()
    assert env.single_action_space == gym.spaces.Discrete(128)
    env.reset(seed=3)
    chosen, info = random_tokens(5, 16, 128), {}
    for t, action in enumerate(chosen):
        observation, reward, terminated, _, info = env.step(action)
        seen = observation["tokens"].flatten(1)
        assert torch.equal(seen[:, : t + 1], chosen[: t + 1].T)
        assert (seen[:, t + 1 :] == 128).all()
        assert terminated.all() == (t == 15)
        assert torch.equal(info["token"], action)
        assert not reward.any()
    grid = chosen.T.reshape(-1, 4, 4)
    torch.testing.assert_close(info["image"], load_part("vq", "digits").decode(grid))


def test_no_generator_is_loaded_unless_its_predictions_are_observed(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        tokens, "load_part", lambda part, backbone: loaded.append(part) or load_part(part, backbone)
    )
    env = make()
    env.reset(seed=0)
    for action in random_tokens(5, 16, 128):
        *_, info = env.step(action)
        assert not info["nfe"].any()
    assert loaded == ["vq"]
    for name in ("logits", "features"):
        make(observe=[name])
    assert loaded == ["vq"] + 2 * ["vq", "llamagen"]


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_logits_are_the_log_probabilities_of_the_next_token(weight):
    sampler, network, _ = small(weight)
    state, rng = start(sampler, 4)
    chosen = random_tokens(4)
    conditional, hidden = network(chosen[:-1].T, state.context)
    unconditional, _ = network(chosen[:-1].T, torch.full((4,), CLASSES))
    expected = (conditional + weight * (conditional - unconditional)).log_softmax(-1)
    for t, action in enumerate(chosen):
        seen = sampler.observe(state, ["logits", "features"])
        assert seen["logits"].dtype == torch.float32
        torch.testing.assert_close(seen["logits"], expected[:, t], rtol=0, atol=1e-4)
        torch.testing.assert_close(seen["features"][:, : t + 1], hidden[:, : t + 1], rtol=0, atol=1e-4)
        assert not seen["features"][:, t + 1 :].any()
        state = sampler.advance(state, action, rng)
    logits = sampler.observe(state, ["logits"])["logits"]
    torch.testing.assert_close(logits, torch.full((4, CODES), -math.log(CODES)))


@pytest.mark.parametrize(("weight", "rows"), [(0.0, 3), (1.5, 6)])
def test_every_decision_costs_one_call_and_none_follows_the_last(weight, rows):
    sampler, _, calls = small(weight)
    state, rng = start(sampler, 3)
    for t, action in enumerate(random_tokens(3)):
        assert calls == [(rows, 1)] * (t + 1)
        assert sampler.diagnostics(state)["nfe"].tolist() == [(t + 1) * rows // 3] * 3
        state = sampler.advance(state, action, rng)
    sampler.decode(state)
    sampler.observe(state, ["tokens", "logits", "features"])
    assert calls == [(rows, 1)] * LENGTH


@pytest.mark.parametrize(("observe", "predictions"), [(["step"], 0), (["logits"], 16)])
def test_the_networks_that_are_measured_are_all_of_its_networks(observe, predictions):
    env = make(3, observe=observe)
    calls, sampler = network_calls(env), unwrapped(env).sampler
    assert [call.func for call in calls if call.func != sampler.new_cache] == [
        *[sampler.read] * predictions,
        sampler.detokenise,
    ]
    zeros = run_episode(env, lambda observation: torch.zeros(3, dtype=torch.int64), seed=0)
    torch.testing.assert_close(calls[-1](), zeros.images)


def test_a_sampler_without_a_network_predicts_nothing():
    sampler, _, _ = small(with_network=False)
    state, rng = start(sampler, 2)
    assert "features" not in sampler.fields
    for action in random_tokens(2):
        logits = sampler.observe(state, ["logits"])["logits"]
        torch.testing.assert_close(logits, torch.full((2, CODES), -math.log(CODES)))
        state = sampler.advance(state, action, rng)
    assert not sampler.undecided(state).any()
    assert not sampler.diagnostics(state)["nfe"].any()


def test_a_very_unlikely_token_stays_within_the_bounds():
    sampler, network, _ = small()
    network.output.weight.data.mul_(1e6)
    state, _ = start(sampler, 4)
    logits = sampler.observe(state, ["logits"])["logits"]
    assert logits.min() == tokens.LOWEST
    assert logits.max() <= 0


@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_old_states_can_be_advanced_again_in_any_order(weight):
    sampler, _, _ = small(weight)
    state, rng = start(sampler, 3)
    chosen, others = random_tokens(3), random_tokens(3, seed=1)
    states = [state]
    for action in chosen:
        states.append(sampler.advance(states[-1], action, rng))
    expected = [sampler.observe(s, ["tokens", "logits", "features"]) for s in states]
    for t in (5, 1, 0, 3):  # other images grow from each state, over the cache that all of them share
        state = states[t]
        for action in others[t:]:
            state = sampler.advance(state, action, rng)
    for t in (6, 2, 0, 4):
        state = states[t]
        for step in range(t, LENGTH):
            state = sampler.advance(state, chosen[step], rng)
            for name, value in sampler.observe(state, ["tokens", "logits", "features"]).items():
                torch.testing.assert_close(value, expected[step + 1][name])


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_drawing_from_the_logits_makes_the_images_of_the_schedules_environment(network, weight):
    env = make(network=network, guidance_weight=weight, observe=["logits"])
    episode = run_episode(env, generator_policy(env), seed=5)
    settings = {"tokens_per_decision": 1, "guidance_weight": weight, "top_k": 0, "top_p": 1}
    settings["schedule"] = "published"
    raster = unwrapped(gym.make_vec(RASTER[network], num_envs=5, reward="none", **settings))
    rng = unwrapped(env).rng
    state = raster.sampler.start(episode.context, rng)
    for t in range(16):
        params = raster.actions(torch.zeros(5, 4), t)
        uniform = rng.at(t).uniform(1, purpose=Purpose.POLICY)
        state = raster.sampler.decide(state, params, uniform)
    assert torch.equal(state.tokens, episode.actions.T)
    torch.testing.assert_close(raster.sampler.decode(state), episode.images)


@pytest.mark.parametrize("mode", ["SameStep", "NextStep"])
def test_the_next_episode_starts_with_a_prediction_of_its_own(mode):
    env, fresh = (make(autoreset_mode=m, observe=["logits", "context"]) for m in (mode, "Disabled"))
    (first, _), (expected, _) = env.reset(seed=2), fresh.reset(seed=2)
    assert torch.equal(first["logits"], expected["logits"])
    observation = first
    for action in random_tokens(5, 16 + (mode == "NextStep"), 128):
        observation = env.step(action)[0]
    expected, _ = fresh.reset()
    assert torch.equal(observation["logits"], expected["logits"])
    assert torch.equal(observation["context"], expected["context"])


@pytest.mark.parametrize("reward", ["default", {"clip": 1, "hpsv2": 1, "loo_fid": 1}])
@pytest.mark.parametrize("contexts", ["cycle", "grouped:4"])
def test_the_finished_image_is_paid(reward, contexts):
    if reward != "default":
        pytest.importorskip("open_clip")
        pytest.importorskip("transformers")
    env = make(8, reward=reward, contexts=contexts, observe=["logits"])
    episode = run_episode(env, generator_policy(env), seed=0)
    assert not episode.rewards[:-1].any()
    assert episode.rewards[-1].isfinite().all()
    assert episode.rewards[-1].std() > 0
    assert set(episode.components) == ({"adversarial"} if reward == "default" else set(reward))
    if contexts == "grouped:4":
        assert episode.group.tolist() == [0] * 4 + [1] * 4


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"network": "gpt"}, "network must be one of llamagen, vqgan, got 'gpt'"),
        ({"backbone": "random:imagenet256-var-d16"}, "has no generator of tokens in raster order"),
        ({"num_steps": 4}, "num_steps must be the 16 tokens of an image, or None, got 4"),
        ({"guidance_weight": 1}, "guidance_weight changes the generator's logits alone, got 1 where"),
        ({"guidance_weight": -1, "observe": ["logits"]}, "guidance_weight must be finite .* got -1"),
        ({"guidance_weight": math.nan}, "guidance_weight must be finite and at least 0, got nan"),
        (
            {"action_mode": "physical"},
            "action_mode='physical' sets .* but the actions are tokens, which have none; leave",
        ),
        ({"smoothing": 0.5}, "are choices, which have no moving average; use smoothing=0"),
        ({"grid": "edm"}, "unexpected keyword argument 'grid'"),
        ({"solver": "heun"}, "unexpected keyword argument 'solver'"),
        ({"tokens_per_decision": 1}, "unexpected keyword argument 'tokens_per_decision'"),
        ({"top_k": 5}, "unexpected keyword argument 'top_k'"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_guidance_is_refused_of_a_network_that_has_no_null_class(monkeypatch):
    network = small()[1]
    network.null_class = False
    parts = {"llamagen": network, "vq": load_part("vq", "digits")}
    monkeypatch.setattr(tokens, "load_part", lambda part, backbone: parts[part])
    arguments = ("digits", None, "cpu", torch.float32, True, False)
    assert not make_sampler(*arguments).has_guidance
    with pytest.raises(ValueError, match=r"trained without a null class, got 0\.5"):
        make_sampler(*arguments, guidance_weight=0.5)


@pytest.mark.parametrize("bad", [-1, 128])
def test_a_token_that_does_not_exist_is_refused_by_its_environment(bad):
    env = make()
    assert isinstance(unwrapped(env).actions, TokenActions)
    env.reset(seed=0)
    with pytest.raises(ValueError, match=rf"env 2: the token must lie in \[0, 127\], got {bad}"):
        env.step(torch.tensor([0, 1, bad, 3, 4]))


def test_the_number_of_tokens_may_be_said():
    assert unwrapped(make(num_steps=16)).sampler.horizon == 16
