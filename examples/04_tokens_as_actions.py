"""PPO of Stable-Baselines3 on top of a frozen generator: its log-probabilities plus a learned correction.

python examples/04_tokens_as_actions.py --timesteps 400000 --seed 1
"""

import argparse

import gymnasium as gym
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import MultiInputActorCriticPolicy

import genenv
from genenv.evaluation import Evaluator
from genenv.integrations.sb3 import GenVecEnv
from genenv.rewards import make_reward
from genenv.rollout import token_draws

parser = argparse.ArgumentParser()
for option, default in {"timesteps": 400_000, "num-envs": 256, "eval-images": 2000, "seed": 0}.items():
    parser.add_argument(f"--{option}", type=int, default=default)
arguments = parser.parse_args()

ENV_ID, KWARGS = "PolicyTuning/Tokens-v0", {"observe": ["logits", "step", "context"]}
REWARD = {"classifier": 1.0, "loo_fid": 0.1}  # legible digits, as different as the real ones


class Corrected(MultiInputActorCriticPolicy):
    """Its correction starts at 0, and the policy as the generator."""

    def _build(self, lr_schedule):
        super()._build(lr_schedule)
        torch.nn.init.zeros_(self.action_net.weight)  # as its bias is
        self.features_extractor.register_forward_pre_hook(lambda _, seen: setattr(self, "seen", seen[0]))

    def _get_action_dist_from_latent(self, latent):
        return self.action_dist.proba_distribution(self.seen["logits"] + self.action_net(latent))


gym.register_envs(genenv)
env = GenVecEnv(gym.make_vec(ENV_ID, num_envs=arguments.num_envs, reward=REWARD, **KWARGS))
settings = {"n_steps": 16, "batch_size": 2 * arguments.num_envs, "learning_rate": 1e-3, "gamma": 1.0}
model = PPO(Corrected, env, seed=arguments.seed, **settings)
evaluator = Evaluator(ENV_ID, KWARGS, arguments.eval_images)
draw = token_draws(evaluator.env)  # with each image's own random numbers


def act(observation):
    """The policy on torch observations: (N,)."""
    return draw(model.policy.get_distribution(observation).distribution.logits)


for title in ("frozen generator", "corrected"):
    found = evaluator(torch.no_grad()(act), arguments.seed * arguments.eval_images)
    batches = zip(*(x.split(250) for x in (found.episode.images, found.episode.context)), strict=True)
    reward = torch.cat([make_reward(REWARD, "digits", "cpu")(*batch) for batch in batches]).mean()
    print(f"{title}: reward {reward:.3f}, " + ", ".join(f"{k} {v:.3f}" for k, v in found.metrics.items()))
    if title == "frozen generator":
        model.learn(arguments.timesteps)
