"""Every example runs, is short, and says what it should."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
SMALL = {
    "01_one_episode.py": [],
    "02_your_own_algorithm.py": ["--iterations", "2", "--num-envs", "16", "--eval-images", "100"],
    "03_stable_baselines3.py": ["--timesteps", "256", "--num-envs", "16", "--eval-images", "100"],
    "04_tokens_as_actions.py": ["--timesteps", "256", "--num-envs", "16", "--eval-images", "100"],
}
SAYS = {
    "01_one_episode.py": "frame (256, 516, 3)",
    "02_your_own_algorithm.py": "learned: fid",
    "03_stable_baselines3.py": "\ntrained: fid",
    "04_tokens_as_actions.py": "\ncorrected: reward",
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_the_example_runs(path, tmp_path):
    assert len(path.read_text().splitlines()) < 60
    command = [sys.executable, "-W", "error", str(path), *SMALL[path.name]]
    environment = {
        "PYTHONPATH": str(FOLDER.parent),
        "PATH": "",
        "OMP_NUM_THREADS": "1",
        "HOME": str(tmp_path),
    }
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert SAYS[path.name] in done.stdout
