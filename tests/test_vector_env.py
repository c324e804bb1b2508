import math

import gymnasium as gym
import numpy as np
import pytest
import torch

import genenv  # noqa: F401
from genenv.bench import sampler_states
from genenv.rng import BatchRng, Purpose, Stream

NUM_PARAMS = 4


def make(num_envs=3, **kwargs):
    return gym.make_vec("AdaGen/MaskGIT-v0", num_envs=num_envs, **({"reward": "none"} | kwargs))


def random_actions(num_envs, horizon=4, seed=0):
    return 0.3 * torch.randn(horizon, num_envs, NUM_PARAMS, generator=torch.Generator().manual_seed(seed))


def play(env, actions):
    """Returns what every step returned."""
    return [env.step(action) for action in actions]


def disabled_images(num_envs, seed, actions, episodes=2):
    """Returns the images of consecutive episodes, each started by hand."""
    env = make(num_envs, autoreset_mode="Disabled")
    images = []
    for episode in range(episodes):
        env.reset(seed=seed if episode == 0 else None)
        images.append(play(env, actions)[-1][-1]["image"])
    return images


def test_an_episode_ends_for_every_image_after_its_decisions_and_never_before():
    env = make(num_steps=6, autoreset_mode="Disabled")
    observation, info = env.reset(seed=0)
    assert info == {}
    assert observation["step"].tolist() == [0, 0, 0]
    for t, (observation, reward, terminated, truncated, info) in enumerate(
        play(env, random_actions(3, 6)), 1
    ):
        assert observation["step"].tolist() == [t] * 3
        assert reward.tolist() == [0.0] * 3
        assert terminated.tolist() == [t == 6] * 3
        assert not truncated.any()
        assert ("image" in info) == (t == 6)


def test_a_zero_action_plays_the_hand_crafted_schedule_token_for_token():
    env = make(16, autoreset_mode="Disabled")
    observation, _ = env.reset(seed=11)
    bare = sampler_states(env, seed=11)
    assert torch.equal(observation["tokens"].flatten(1), next(bare).tokens)
    for _, state in zip(range(4), bare, strict=True):
        observation, _, _, _, info = env.step(torch.zeros(16, NUM_PARAMS))
        assert torch.equal(observation["tokens"].flatten(1), state.tokens)
        for param in env.unwrapped.sampler.params:
            assert (info[f"schedule/{param.name}"] == param.static[state.step - 1].float()).all()
    assert torch.equal(info["image"], env.unwrapped.sampler.decode(state))


@pytest.mark.parametrize("observe", [None, ("tokens", "step", "features")], ids=["tokens", "features"])
@pytest.mark.parametrize("num_envs", [1, 8])
def test_an_image_is_the_same_in_a_batch_of_any_size(num_envs, observe):
    actions = random_actions(64)
    large, small = make(64, observe=observe), make(num_envs, observe=observe)
    large.reset(seed=100)
    small.reset(seed=100)
    for action in actions[:-1]:
        tokens = large.step(action)[0]["tokens"][:num_envs]
        assert torch.equal(small.step(action[:num_envs])[0]["tokens"], tokens)
    in_large, in_small = large.step(actions[-1])[-1], small.step(actions[-1][:num_envs])[-1]
    tokens = in_large["final_obs"]["tokens"][:num_envs]
    assert torch.equal(in_small["final_obs"]["tokens"], tokens)
    torch.testing.assert_close(in_small["final_info"]["image"], in_large["final_info"]["image"][:num_envs])


def test_an_image_keeps_its_tokens_at_another_place_of_the_batch():
    actions = random_actions(4)
    forward, backward = make(4), make(4)
    forward.reset(seed=[5, 6, 7, 8])
    backward.reset(seed=[8, 7, 6, 5])
    for action in actions[:-1]:
        tokens = forward.step(action)[0]["tokens"]
        assert torch.equal(backward.step(action.flip(0))[0]["tokens"].flip(0), tokens)


def test_same_step_autoreset_hands_out_each_finished_image_with_the_next_first_observation():
    actions = random_actions(3)
    disabled, env = make(3, autoreset_mode="Disabled"), make(3, autoreset_mode="SameStep")
    first_observations = [disabled.reset(seed=seed)[0] for seed in (7, None, None)]
    env.reset(seed=7)
    for image, next_first in zip(disabled_images(3, 7, actions), first_observations[1:], strict=True):
        steps = play(env, actions)
        for t, (_, _, terminated, _, info) in enumerate(steps, 1):
            assert terminated.tolist() == [t == 4] * 3
            assert ("final_info" in info) == ("final_obs" in info) == (t == 4)
        observation, _, _, _, info = steps[-1]
        assert torch.equal(info["final_info"]["image"], image)
        assert info["final_obs"]["step"].tolist() == [4, 4, 4]
        assert info["_final_obs"].all()
        assert info["_final_info"].all()
        assert info["final_info"]["_image"].all()
        assert observation.keys() == next_first.keys()
        assert all(torch.equal(observation[name], value) for name, value in next_first.items())


def test_next_step_autoreset_spends_one_step_on_the_reset_and_ignores_its_action():
    actions = random_actions(3)
    expected = disabled_images(3, 7, actions)
    env = make(3, autoreset_mode="NextStep")
    env.reset(seed=7)
    for image in expected:
        observation, _, terminated, _, info = play(env, actions)[-1]
        assert terminated.all()
        assert observation["step"].tolist() == [4, 4, 4]
        assert torch.equal(info["image"], image)
        observation, reward, terminated, truncated, info = env.step(torch.full((3, NUM_PARAMS), math.nan))
        assert observation["step"].tolist() == [0, 0, 0]
        assert (observation["tokens"] == env.unwrapped.sampler.mask_id).all()
        assert info == {}
        assert not torch.stack([reward != 0, terminated, truncated]).any()


def test_without_autoreset_a_step_after_the_end_is_refused():
    env = make(autoreset_mode="Disabled")
    env.reset(seed=0)
    play(env, random_actions(3))
    with pytest.raises(gym.error.ResetNeeded, match=r"the episode is over after 4 steps: call reset\(\)"):
        env.step(torch.zeros(3, NUM_PARAMS))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_a_step_before_the_first_reset_is_refused(mode):
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before step\(\)"):
        make(autoreset_mode=mode).step(torch.zeros(3, NUM_PARAMS))


@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
def test_the_autoreset_mode_is_in_the_metadata(mode):
    expected = gym.vector.AutoresetMode(mode)
    env = make(autoreset_mode=mode)
    assert env.metadata["autoreset_mode"] is expected
    assert env.unwrapped.autoreset_mode is expected


def test_a_reset_in_mid_episode_starts_a_new_one():
    env = make()
    env.reset(seed=3)
    first = play(env, random_actions(3)[:2])[-1][0]["tokens"]
    observation, _ = env.reset(seed=3)
    assert observation["step"].tolist() == [0, 0, 0]
    assert torch.equal(play(env, random_actions(3)[:2])[-1][0]["tokens"], first)


def test_resets_without_a_seed_go_on_to_new_images_reproducibly():
    first, second = (disabled_images(3, 7, random_actions(3), episodes=3) for _ in range(2))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[1], first[2])
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_a_partial_reset_mask_is_refused_and_a_full_one_taken():
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"reset_mask must be all True.*lockstep.*\[True, False, True\]"):
        env.reset(options={"reset_mask": np.array([True, False, True])})
    observation, _ = env.reset(options={"reset_mask": np.ones(3, bool)})
    assert observation["step"].tolist() == [0, 0, 0]


def test_a_state_is_what_the_generator_made_and_stays_as_it_was():
    env = make(autoreset_mode="Disabled")
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before state is asked for"):
        _ = env.unwrapped.state
    observation, _ = env.reset(seed=0)
    first, tokens = env.unwrapped.state, observation["tokens"].clone()
    info = play(env, random_actions(3))[-1][-1]
    assert torch.equal(env.unwrapped.sampler.decode(env.unwrapped.state), info["image"])
    assert torch.equal(first.tokens.view_as(tokens), tokens)
    with pytest.raises(AttributeError):
        env.unwrapped.state = first


@pytest.mark.parametrize(
    ("given", "expected"), [(3, [3, 3, 3]), ([1, 2, 9], [1, 2, 9]), (np.int64(4), [4] * 3)]
)
def test_reset_options_set_the_context(given, expected):
    env = make()
    observation, _ = env.reset(seed=0, options={"context": given})
    assert observation["context"].tolist() == env.unwrapped.context.tolist() == expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"options": {"context": 10}}, r"context must be a label in 0\.\.9, got 10"),
        ({"options": {"context": [1, 2]}}, r"options\['context'\] must hold 1 or 3 labels, got 2"),
        ({"options": {"context": [1, [2], 3]}}, r"options\['context'\] must hold 1 or 3 labels, got \[1, \["),
        ({"options": {"stream": ["tuning"]}}, r"options\['stream'\] must be one of .*, got \['tuning'\]"),
        ({"options": {"reset_mask": "all"}}, "reset_mask must be all True.*, got all"),
        ({"options": 3}, "reset options must be a dictionary, got 3"),
        ({"options": 0}, "reset options must be a dictionary, got 0"),
        ({"options": "context"}, "reset options must be a dictionary, got 'context'"),
        ({"options": []}, r"reset options must be a dictionary, got \[\]"),
        ({"options": {3: 1}}, r"reset options must be among .*, got \['3'\]"),
        (
            {"options": {"label": 1}},
            r"reset options must be among 'context', 'stream', 'reset_mask', got \['label'\]",
        ),
        ({"seed": [1, 2]}, "seed must be one integer or 3 of them, got 2"),
        ({"seed": 2**63 - 3 + 1}, r"seeds must lie in 0\.\.2\*\*63-1, got 9223372036854775806 for 3 images"),
        ({"seed": 2**63}, r"seeds must lie in 0\.\.2\*\*63-1, got 9223372036854775808 for 3 images"),
        ({"seed": [1, 2**63, 3]}, r"seeds must lie in 0\.\.2\*\*63-1, got \[1, 9223372036854775808, 3\]"),
        ({"seed": [1, -1, 3]}, r"seeds must lie in 0\.\.2\*\*63-1, got \[1, -1, 3\]"),
        ({"seed": [1, 2.0, 3]}, r"seed must be a whole number, got 2\.0"),
    ],
)
def test_a_wrong_reset_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        make().reset(**call)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(2, 4), r"actions must have shape \(3, 4\), got \(2, 4\)"),
        (torch.zeros(4), r"actions must have shape \(3, 4\), got \(4,\)"),
        (torch.zeros(3, 4, dtype=torch.int64), r"actions must be floating point, got torch\.int64"),
        (torch.zeros(3, 4, device="meta"), r"actions must be on cpu, got meta; move them with"),
        (
            torch.tensor([0, 0, math.nan]).expand(4, 3).T,
            "action of env 2: mask_ratio must be finite, got nan",
        ),
        (np.full((3, 4), np.inf, np.float32), "action of env 0: mask_ratio must be finite, got inf"),
    ],
)
def test_wrong_actions_are_refused_and_the_episode_goes_on(actions, message):
    env = make()
    env.reset(seed=0)
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    assert env.step(torch.zeros(3, 4))[0]["step"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize(
    "form",
    [
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.asfortranarray(a)[:, ::-1].copy()[:, ::-1],
        lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
        lambda a: a.astype(">f8"),
        lambda a: a.astype(np.float64).tolist(),
        list,
    ],
    ids=["reversed", "columns reversed", "read-only", "big-endian", "nested lists", "list of arrays"],
)
def test_actions_are_arrays_of_any_form(form, output):
    actions = np.random.default_rng(3).uniform(-1, 1, (3, 4)).astype(np.float32)
    one, other = make(output=output), make()
    for env in (one, other):
        env.reset(seed=5)
    found, expected = one.step(form(actions))[4], other.step(torch.from_numpy(actions))[4]
    for name in expected:
        assert np.array_equal(np.asarray(found[name]), expected[name].numpy())


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize(
    "actions",
    [
        *(None, "abc", {"a": 1}, [[0.0], [1.0, 2.0]], np.array(["x", "y"])),
        *(np.zeros((3, 4), np.longdouble), [torch.zeros(4, requires_grad=True)] * 3),
    ],
)
def test_actions_that_are_no_numbers_are_refused_by_name(actions, output):
    env = make(output=output)
    env.reset(seed=0)
    with pytest.raises(
        ValueError, match=r"^actions must be an array of numbers, as of float32 or int64, got "
    ) as refused:
        env.step(actions)
    assert repr(actions) in str(refused.value)


@pytest.mark.parametrize("autoreset_mode", ["SameStep", "NextStep", "Disabled"])
def test_numpy_output_holds_the_numbers_of_torch_output(autoreset_mode):
    kwargs = {"autoreset_mode": autoreset_mode, "reward": "loo_fid"}
    ours, theirs = make(**kwargs), make(output="numpy", **kwargs)

    def same(tensor, array):
        if isinstance(tensor, dict):
            assert tensor.keys() == array.keys()
            return all(same(tensor[name], array[name]) for name in tensor)
        assert type(array) is np.ndarray
        return np.array_equal(tensor.numpy(), array) and tensor.numpy().dtype == array.dtype

    assert same(ours.reset(seed=1)[0], theirs.reset(seed=1)[0])
    for action in random_actions(3):
        for tensor, array in zip(ours.step(action), theirs.step(action.numpy()), strict=True):
            assert same(tensor, array)


def test_numpy_output_is_not_written_to_again():
    env = make(output="numpy")
    first, _ = env.reset(seed=1)
    before = first["tokens"].copy()
    play(env, random_actions(3).numpy())
    assert np.array_equal(first["tokens"], before)


def test_every_field_can_be_observed_and_lies_in_its_space():
    names = ("features", "context", "tokens", "prev_action", "step")
    env = make(observe=names, output="numpy")
    observation, _ = env.reset(seed=0)
    actions = random_actions(3).numpy()
    assert set(env.single_observation_space) == set(observation) == set(names)
    assert np.array_equal(observation["prev_action"], np.zeros((3, 4)))
    for action in actions[:-1]:
        assert observation in env.observation_space
        observation = env.step(action)[0]
        assert np.array_equal(observation["prev_action"], action)
        assert observation["features"].any()
    info = env.step(actions[-1])[-1]
    assert info["final_obs"] in env.observation_space
    assert not info["final_obs"]["features"].any()  # no network call after the last decision


def test_physical_actions_are_the_schedule():
    env = make(action_mode="physical")
    assert env.single_action_space.low.tolist() == [0.0] * 4
    assert env.single_action_space.high[0] == 1.0
    env.reset(seed=0)
    action = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    info = env.step(action)[-1]
    schedule = torch.stack([info[f"schedule/{p.name}"] for p in env.unwrapped.sampler.params], dim=1)
    assert torch.equal(schedule, action)


def test_the_grid_is_open_at_the_start_and_each_step_masks_what_the_ratio_says():
    env = make(32, num_steps=8, autoreset_mode="Disabled")
    env.reset(seed=0)
    open_before = torch.full((32,), 15)  # one token at least is decided
    for action in random_actions(32, 8):
        info = env.step(action)[-1]
        wanted = (info["schedule/mask_ratio"] * 16).floor().long()
        assert torch.equal(info["num_masked"], torch.minimum(wanted, open_before))
        open_before = info["num_masked"]


def test_frames_show_the_image_beside_its_open_places():
    env = make(2, render_mode="rgb_array")
    env.reset(seed=0)
    frames = env.render()
    assert len(frames) == 2
    assert frames[0].shape == (256, 516, 3)
    assert frames[0].dtype == np.uint8
    mask = frames[0][:, 260:]
    assert (mask == mask[0, 0]).all()  # everything is open
    play(env, torch.zeros(4, 2, NUM_PARAMS))
    finished = env.render()[0]
    assert not np.array_equal(finished[:, 260:], mask)  # still the finished image after the automatic reset
    assert env.unwrapped.current_step == 0


def test_human_rendering_returns_nothing_and_draws_the_start_and_every_step(monkeypatch):
    shown = []
    env = make(2, render_mode="human")
    monkeypatch.setattr(env.unwrapped, "_show", shown.append)
    env.reset(seed=0)
    play(env, torch.zeros(4, 2, NUM_PARAMS))
    assert env.render() is None
    assert len(shown) == 6  # reset, four steps, render()
    assert all(len(frames) == 2 for frames in shown)


def test_rendering_before_the_first_reset_is_refused():
    with pytest.raises(gym.error.ResetNeeded, match=r"call reset\(\) before render\(\)"):
        make(render_mode="rgb_array").render()


def test_rendering_without_a_render_mode_warns():
    env = make()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match=r"render\(\) needs render_mode='rgb_array' or 'human'"):
        assert env.render() is None


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (1.5, "seed must be a whole number, got 1.5"),
        ("3", "seed must be a whole number, got '3'"),
        (True, "seed must be a whole number, got True"),
        ([0, 1, 2.0], "seed must be a whole number, got 2.0"),
        (-1, r"seeds must lie in 0\.\.2\*\*63-1, got -1 for 3 images"),
        (2**63 - 2, r"seeds must lie in 0\.\.2\*\*63-1, got 9223372036854775806 for 3 images"),
    ],
)
def test_a_seed_that_is_none_is_refused(seed, message):
    with pytest.raises(ValueError, match=message):
        make().reset(seed=seed)


@pytest.mark.parametrize(
    "seed", [np.int64(7), np.uint8(7), np.array(7), torch.tensor(7), np.arange(7, 10), torch.arange(7, 10)]
)
def test_whole_numbers_of_any_library_are_seeds(seed):
    env = make()
    env.reset(seed=seed)
    assert env.unwrapped.rng.seeds.tolist() == [7, 8, 9]


@pytest.mark.parametrize(
    "call",
    [
        {"seed": 77, "options": {"context": 99}},
        {"seed": 77, "options": {"stream": "test"}},
        {"seed": 77, "options": {"reset_mask": [True, False, True]}},
        {"seed": [77, 78]},
        {"options": {"stream": "held_out"}},
    ],
)
def test_a_refused_reset_leaves_the_episode_as_it_was(call):
    actions = random_actions(3)
    env, other = make(), make()
    images = []
    for each, disturbed in ((env, True), (other, False)):
        each.reset(seed=5)
        each.step(actions[0])
        if disturbed:
            with pytest.raises(ValueError, match=r"must|needs"):
                each.reset(**call)
        images.append(play(each, actions[1:])[-1][-1]["final_info"]["image"])
        images.append(play(each, actions)[-1][-1]["final_info"]["image"])
    assert torch.equal(images[0], images[2])
    assert torch.equal(images[1], images[3])


def test_streams_share_no_image_and_stay_until_the_next_seed():
    actions, images = random_actions(8), {}
    for stream in ("training", "tuning", "held_out"):
        env = make(8)
        env.reset(seed=5, options={"stream": stream})
        images[stream] = [play(env, actions)[-1][-1]["final_info"]["image"] for _ in range(2)]
        assert env.unwrapped.rng.stream is Stream[stream.upper()]
    plain = make(8)
    plain.reset(seed=5)
    assert torch.equal(play(plain, actions)[-1][-1]["final_info"]["image"], images["training"][0])
    everything = torch.cat([image for pair in images.values() for image in pair]).flatten(1)
    assert len(everything.unique(dim=0)) == len(everything)


@pytest.mark.parametrize("env_id", ["AdaGen/DiT-v0", "AdaGen/SiT-v0"])
@pytest.mark.parametrize(("value", "dtype"), [(1e21, "float32"), (1e5, "float16"), (-3e38, "float32")])
def test_absurd_residual_actions_are_refused_with_their_image(env_id, value, dtype):
    env = gym.make_vec(env_id, num_envs=3, reward="none", dtype=dtype)
    env.reset(seed=0)
    actions = torch.zeros(3, 2)
    actions[2, 1] = value
    with pytest.raises(ValueError, match=r"action of env 2: guidance_weight must lie in \[-1000.0, 1000.0\]"):
        env.step(actions)


@pytest.mark.parametrize("env_id", ["AdaGen/DiT-v0", "AdaGen/SiT-v0"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_largest_legal_actions_give_finite_images_and_observations_in_their_space(env_id, dtype):
    env = gym.make_vec(env_id, num_envs=4, reward="none", dtype=dtype, output="numpy")
    env.reset(seed=0)
    signs = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    for t in range(env.unwrapped.sampler.horizon):
        observation, *_, info = env.step(1000 * signs * (-1) ** t)
        final = info.get("final_obs", observation)
        assert final in env.observation_space
    assert np.isfinite(info["final_info"]["image"]).all()


def test_an_image_that_is_not_finite_is_refused_by_its_env_and_seed(monkeypatch):
    env = make()
    env.reset(seed=40)
    decode = env.unwrapped.sampler.decode

    def damaged(state):
        images = decode(state).clone()
        images[1, 0, 2, 3] = math.nan
        return images

    monkeypatch.setattr(env.unwrapped.sampler, "decode", damaged)
    play(env, random_actions(3)[:3])
    with pytest.raises(ValueError, match=r"the image of env 1 \(seed 41\) holds numbers that are not finite"):
        env.step(torch.zeros(3, NUM_PARAMS))


def test_groups_are_told_at_the_end_and_follow_the_seeds():
    env = make(5, contexts="grouped:2")
    env.reset(seed=3)
    final = play(env, random_actions(5))[-1][-1]["final_info"]
    assert final["group"].tolist() == [1, 2, 2, 3, 3]
    env.reset(seed=3, options={"context": [1, 1, 2, 2, 2]})
    final = play(env, random_actions(5))[-1][-1]["final_info"]
    assert final["group"].tolist() == final["context"].tolist() == [1, 1, 2, 2, 2]


def test_the_start_shares_no_number_with_the_first_transition():
    rng = BatchRng(torch.arange(4))
    noise = {purpose: rng.normal(64, purpose=purpose) for purpose in Purpose}
    for one in Purpose:
        for other in Purpose:
            assert (one is other) == torch.equal(noise[one], noise[other])
    env = gym.make_vec("AdaGen/SiT-v0", num_envs=4, reward="none")
    start = env.reset(seed=0)[0]["latents"].flatten(1)
    assert torch.equal(start, noise[Purpose.START].float())
