"""REINFORCE in forty lines, torch tensors from end to end: a starting point for an algorithm of your own.

python examples/02_your_own_algorithm.py --iterations 60
"""

import argparse

import gymnasium as gym
import torch
from torch import nn

import genenv
from genenv.evaluation import Evaluator

parser = argparse.ArgumentParser()
parser.add_argument("--iterations", type=int, default=60)
parser.add_argument("--num-envs", type=int, default=256)
parser.add_argument("--eval-images", type=int, default=1000)
arguments = parser.parse_args()

ENV_ID, STD = "AdaGen/MaskGIT-v0", 0.3
KWARGS = {"observe": ["step", "context"], "num_steps": 4}
gym.register_envs(genenv)
env = gym.make_vec(ENV_ID, num_envs=arguments.num_envs, autoreset_mode="Disabled", reward="loo_fid", **KWARGS)
num_params = env.single_action_space.shape[0]

torch.manual_seed(0)
mean = nn.Embedding(KWARGS["num_steps"], num_params)  # one learned action for each step
nn.init.zeros_(mean.weight)  # zero is the hand-crafted schedule
optimiser = torch.optim.Adam(mean.parameters(), lr=0.03)


def act(observation):
    """The policy without exploration: (N, A)."""
    return mean(observation["step"])


for iteration in range(arguments.iterations):
    observation, _ = env.reset(seed=0 if iteration == 0 else None)  # then on to each seed's next episode
    log_prob = torch.zeros(arguments.num_envs)
    for _ in range(KWARGS["num_steps"]):
        policy = torch.distributions.Normal(act(observation), STD)
        action = policy.sample()
        log_prob = log_prob + policy.log_prob(action).sum(-1)
        observation, reward, _, _, info = env.step(action)
    advantage = (reward - reward.mean()) / (reward.std() + 1e-8)
    optimiser.zero_grad()
    (-log_prob * advantage).mean().backward()
    optimiser.step()

evaluator = Evaluator(ENV_ID, KWARGS, num_images=arguments.eval_images)
for name, actor in (("hand-crafted", lambda o: torch.zeros(len(o["step"]), num_params)), ("learned", act)):
    metrics = evaluator(torch.no_grad()(actor)).metrics
    print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items()))
