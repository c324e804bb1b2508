import os

import hypothesis
import torch

os.environ["MPLBACKEND"] = "Agg"
torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other

# The same examples in every run, however busy the machine is.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True)
hypothesis.settings.load_profile("suite")
