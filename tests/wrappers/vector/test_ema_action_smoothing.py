import gymnasium as gym
import pytest
import torch
from gymnasium.vector import VectorWrapper
from oracles import smooth

from genenv.vector_env import unwrapped
from genenv.wrappers.vector import EMAActionSmoothing

HORIZON, NUM_ENVS, NUM_PARAMS = 4, 3, 4


class Recorder(VectorWrapper):
    """Keeps the actions that reach the environment."""

    def __init__(self, env):
        super().__init__(env)
        self.seen = []

    def step(self, actions):
        self.seen.append(torch.as_tensor(actions))
        return self.env.step(actions)


def make(**kwargs):
    kwargs = {"num_envs": NUM_ENVS, "reward": "none"} | kwargs
    return gym.make_vec("AdaGen/MaskGIT-v0", **kwargs)


def random_actions(steps):
    return torch.randn(steps, NUM_ENVS, NUM_PARAMS, generator=torch.Generator().manual_seed(0))


def smoothed(actions, decay):
    """Returns the moving averages of actions (T, N, A) along T, number by number."""
    columns = actions.flatten(1).T.tolist()
    return torch.tensor([smooth(column, decay) for column in columns]).T.view_as(actions)


@pytest.mark.parametrize("output", ["torch", "numpy"])
@pytest.mark.parametrize("mode", ["SameStep", "NextStep", "Disabled"])
@pytest.mark.parametrize("decay", [0.0, 0.4, 0.8])
def test_each_episode_is_smoothed_on_its_own(decay, mode, output):
    recorder = Recorder(make(autoreset_mode=mode, output=output))
    env = EMAActionSmoothing(recorder, decay)
    length = HORIZON + (mode == "NextStep")
    actions = random_actions(3 * length)
    for t, action in enumerate(actions):
        if t == 0 or (mode == "Disabled" and t % HORIZON == 0):
            env.reset()
        env.step(action.numpy() if output == "numpy" else action)
    for episode in range(3):
        # In NextStep the step after an episode's last is the reset, whose action is ignored.
        chosen = slice(episode * length, episode * length + HORIZON)
        torch.testing.assert_close(torch.stack(recorder.seen[chosen]), smoothed(actions[chosen], decay))


def test_a_reset_in_mid_episode_forgets_the_average():
    recorder = Recorder(make())
    env = EMAActionSmoothing(recorder, 0.8)
    actions = random_actions(4)
    env.reset()
    env.step(actions[0])
    env.step(actions[1])
    env.reset()
    env.step(actions[2])
    assert torch.equal(recorder.seen[2], actions[2])


@pytest.mark.parametrize("decay", [0.4, 0.8])
def test_smoothing_equals_the_published_order(decay):
    """AdaGen adds an inversely smoothed residual to the action, smooths the sum, and applies the bijector."""
    env = make(smoothing=decay, num_steps=6, schedule="published")
    params = unwrapped(env).sampler.params
    actions = random_actions(6)
    env.reset(seed=0)
    infos = [env.step(action)[-1] for action in actions]
    infos[-1] = infos[-1]["final_info"]
    for column, param in enumerate(params):
        base = param.bijector.inverse(param.static)
        residual = base.clone()
        residual[1:] = (base[1:] - decay * base[:-1]) / (1 - decay)
        raw = param.span * actions[:, :, column].double() + residual[:, None]
        expected = param.bijector.forward(smoothed(raw[..., None], decay)[..., 0].double())
        found = torch.stack([info[f"schedule/{param.name}"] for info in infos])
        torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("actions", "message"),
    [
        (torch.zeros(2, 4), r"actions must have shape \(3, 4\), got \(2, 4\)"),
        (torch.zeros(3, 4, dtype=torch.int64), r"actions must be floating point, got torch\.int64"),
        (torch.zeros(3, 4, device="meta"), "actions must be on cpu, got meta"),
    ],
)
def test_wrong_actions_are_refused_in_the_environments_words(actions, message):
    env = make(smoothing=0.8)
    env.reset()
    env.step(random_actions(1)[0])
    with pytest.raises(ValueError, match=message):
        env.step(actions)


def test_the_type_of_the_actions_may_change():
    recorder = Recorder(make())
    env = EMAActionSmoothing(recorder, 0.8)
    actions = random_actions(2)
    env.reset()
    env.step(actions[0])
    env.step(actions[1].double())
    torch.testing.assert_close(recorder.seen[1].float(), smoothed(actions, 0.8)[1])


def test_the_caller_may_reuse_its_action_tensor():
    recorder = Recorder(make(observe=["prev_action"]))
    env = EMAActionSmoothing(recorder, 0.8)
    actions = random_actions(3)
    env.reset()
    buffer = torch.empty_like(actions[0])
    for t, expected in enumerate(smoothed(actions, 0.8)):
        observation = env.step(buffer.copy_(actions[t]))[0]
        buffer.zero_()
        torch.testing.assert_close(observation["prev_action"], expected)


def test_zero_actions_stay_the_hand_crafted_schedule():
    env = make(smoothing=0.8)
    env.reset(seed=0)
    for t in range(HORIZON - 1):
        info = env.step(torch.zeros(NUM_ENVS, NUM_PARAMS))[-1]
        for param in unwrapped(env).sampler.params:
            assert (info[f"schedule/{param.name}"] == param.static[t].float()).all()


def test_a_refused_action_leaves_no_trace_in_the_average():
    recorder = Recorder(make())
    env = EMAActionSmoothing(recorder, 0.8)
    actions = random_actions(2)
    env.reset()
    env.step(actions[0])
    with pytest.raises(ValueError, match="must be finite"):
        env.step(torch.full_like(actions[0], float("nan")))
    env.step(actions[1])
    torch.testing.assert_close(recorder.seen[-1], smoothed(actions, 0.8)[1])
