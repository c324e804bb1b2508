"""One image with Gymnasium's usual loop: the hand-crafted schedule, then a colder one.

python examples/01_one_episode.py
"""

import gymnasium as gym
import numpy as np

import genenv

gym.register_envs(genenv)
env = gym.make("AdaGen/MaskGIT-v0", reward="classifier", render_mode="rgb_array")
names = [param.name for param in env.unwrapped.sampler.params]

for title, action in (
    ("hand-crafted", np.zeros(4, np.float32)),
    ("colder", np.array([0.0, 0.0, -1.0, 0.0], np.float32)),
):
    observation, info = env.reset(seed=7, options={"context": 3})
    print(f"{title}: draw the digit {observation['context']}")
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(action)
        schedule = ", ".join(f"{name} {info[f'schedule/{name}']:.2f}" for name in names)
        print(f"  step {observation['step']}: {info['num_masked']:2d} tokens open; {schedule}")
    print(f"  reward {reward:.3f}, image {info['image'].shape}, frame {env.render().shape}")
