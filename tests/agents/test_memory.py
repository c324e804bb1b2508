"""Memory does not grow with the images of a rollout."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_rollout_and_an_update_in_chunks_hold_a_chunk_of_features():
    words = ["--num-images", "64", "--chunk-size", "4", "--num-steps", "8", "--update"]
    done = subprocess.run(
        [sys.executable, "-m", "agents.memory", *words], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    needed, found = done.stdout.splitlines()
    assert needed.startswith("needs 3.0 MiB for features (4 images at once, 256 x 768, one decision)")
    before, peak, kept = (float(number) for number in re.findall(r"([\d.]+) GiB", found))
    assert kept == 0.4
    assert peak - before < kept / 2
