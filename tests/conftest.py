import os

import hypothesis
import torch

os.environ["MPLBACKEND"] = "Agg"
# The networks are tiny, here and in the programs that tests start: more threads only wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, however busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")
