import os

import torch

os.environ["MPLBACKEND"] = "Agg"
torch.set_num_threads(1)  # the networks are tiny: more threads only wait for each other
