"""PPO of Stable-Baselines3 on a batch of images.

python examples/03_stable_baselines3.py --timesteps 100000
"""

import argparse

import gymnasium as gym
import torch
from stable_baselines3 import PPO

import genenv
from genenv.evaluation import Evaluator
from genenv.integrations.sb3 import GenVecEnv

parser = argparse.ArgumentParser()
parser.add_argument("--timesteps", type=int, default=100_000)
parser.add_argument("--num-envs", type=int, default=256)
parser.add_argument("--eval-images", type=int, default=1000)
arguments = parser.parse_args()

ENV_ID = "AdaGen/MaskGIT-v0"
gym.register_envs(genenv)
env = GenVecEnv(gym.make_vec(ENV_ID, num_envs=arguments.num_envs))
model = PPO("MultiInputPolicy", env, n_steps=8, seed=0)  # 8 steps: two episodes of every image
evaluator = Evaluator(ENV_ID, num_images=arguments.eval_images)


def act(observation):
    """The deterministic policy on torch observations: (N, A)."""
    action, _ = model.predict({k: v.numpy() for k, v in observation.items()}, deterministic=True)
    return torch.from_numpy(action)


for title in ("untrained", "trained"):
    metrics = evaluator(act).metrics
    print(f"{title}: " + ", ".join(f"{key} {value:.3f}" for key, value in metrics.items()))
    if title == "untrained":
        model.learn(arguments.timesteps)
