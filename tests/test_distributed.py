import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.multiprocessing import start_processes

from genenv.distributed import num_ranks, sum_over_ranks
from genenv.rewards.loo_fid import LeaveOneOutFID
from genenv.rewards.mixture import Mixture


class Pixels:
    """The pixels of an image as its features."""

    def features(self, images):
        return images.flatten(1)


def images():
    return torch.randn(12, 1, 1, 4, generator=torch.Generator().manual_seed(0)) + 0.5


def reward():
    return LeaveOneOutFID(Pixels(), (torch.zeros(4), torch.ones(4)), half_life=8.0)


def context():
    return torch.arange(12) % 3


def mixture():
    """Standardises among images of a context, which both processes have."""
    return Mixture({"loo": reward(), "mean": lambda images, context: images.mean((1, 2, 3))}, normalise=True)


def test_a_lone_process_keeps_its_own():
    value = torch.ones(2)
    assert num_ranks() == 1
    assert sum_over_ranks(value) is value


def _process(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    own = images().split([4, 8])[rank]  # unequal parts
    judge = reward()
    paid = [judge(own, None) for _ in range(2)]
    mixed = mixture().judge(own, context().split([4, 8])[rank])[0]
    torch.save({"paid": paid, "mixed": mixed, "ranks": num_ranks()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_do_what_one_does_with_all_images(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, __file__, str(tmp_path)], env=environment, check=True, timeout=100)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [part["ranks"] for part in found] == [2, 2]
    judge = reward()
    for call in range(2):
        together = torch.cat([part["paid"][call] for part in found])
        torch.testing.assert_close(together, judge(images(), None))
    mixed = torch.cat([part["mixed"] for part in found])
    torch.testing.assert_close(mixed, mixture().judge(images(), context())[0])


if __name__ == "__main__":  # a fork each, which has the libraries already
    start_processes(_process, (sys.argv[1],), 2, start_method="fork")
