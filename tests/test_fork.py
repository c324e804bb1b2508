import os
import signal
import subprocess
import sys

import pytest

import genenv

ASYNC = """
import sys
import gymnasium as gym, torch, genenv
torch.set_num_threads(2)
for env_id in sys.argv[1:]:
    gym.make(env_id).reset(seed=0)  # starts torch's threads in the parent
    envs = gym.make_vec(env_id, num_envs=2, vectorization_mode="async")
    (found, _), (expected, _) = envs.reset(seed=0), gym.make_vec(env_id, num_envs=2).reset(seed=0)
    assert all((found[name] == expected[name].numpy()).all() for name in expected)
    envs.step(envs.action_space.sample())
    envs.close()
    print(env_id, flush=True)
"""
SUBPROC = """
import sys
import gymnasium as gym, torch, genenv
from stable_baselines3.common.vec_env import SubprocVecEnv
torch.set_num_threads(2)
gym.make(sys.argv[1]).reset(seed=0)
envs = SubprocVecEnv([lambda: gym.make(sys.argv[1])] * 2, start_method="fork")
envs.seed(0)
envs.reset()
envs.step([envs.action_space.sample()] * 2)
envs.close()
print(sys.argv[1])
"""


def finished(code, *ids):
    """Returns the ids that a program has got through; what it leaves hanging is ended with it."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    environment["OMP_WAIT_POLICY"] = "passive"  # threads that wait take no time of the other tests
    with subprocess.Popen(
        [sys.executable, "-c", code, *ids],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as program:
        try:
            return program.communicate(timeout=90)[0].split()
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            return program.communicate()[0].split()


def test_forked_environments_run_beside_a_parent_that_has_threads():
    assert finished(ASYNC, *genenv.env_ids()) == genenv.env_ids()


def test_sb3s_forked_environments_run_beside_a_parent_that_has_threads():
    pytest.importorskip("stable_baselines3")
    assert finished(SUBPROC, "AdaGen/MaskGIT-v0") == ["AdaGen/MaskGIT-v0"]
