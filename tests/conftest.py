import os

import hypothesis
import pytest
import torch

os.environ["MPLBACKEND"] = "Agg"
# The networks are tiny, here and in the programs that tests start: more threads only wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, however busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")


@pytest.fixture
def full_disk():
    """No file grows beyond 100 kB."""
    resource = pytest.importorskip("resource")  # only Unix has it
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
