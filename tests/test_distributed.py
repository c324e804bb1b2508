import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn

from genenv.distributed import average_gradients, num_ranks, sum_over_ranks
from genenv.rewards.loo_fid import LeaveOneOutFID


class Pixels:
    """The pixels of an image as its features."""

    def features(self, images):
        return images.flatten(1)


def images():
    return torch.randn(12, 1, 1, 4, generator=torch.Generator().manual_seed(0)) + 0.5


def reward():
    return LeaveOneOutFID(Pixels(), (torch.zeros(4), torch.ones(4)), half_life=8.0)


def gradient(model, batch):
    model(batch.flatten(1)).square().mean().backward()


def linear():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(4, 3)


def test_a_lone_process_keeps_its_own():
    value, model = torch.ones(2), linear()
    assert num_ranks() == 1
    assert sum_over_ranks(value) is value
    gradient(model, images())
    before = model.weight.grad.clone()
    average_gradients(model)
    assert torch.equal(model.weight.grad, before)


def _process(rank, folder):
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    own = images().split([4, 8])[rank]  # unequal parts
    judge, model = reward(), linear()
    paid = [judge(own, None) for _ in range(2)]
    gradient(model, images().chunk(2)[rank])
    average_gradients(model)
    torch.save({"paid": paid, "gradient": model.weight.grad, "ranks": num_ranks()}, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


@pytest.mark.skipif(not distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_do_what_one_does_with_all_images(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment)
        for rank in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert [part["ranks"] for part in found] == [2, 2]
    judge, model = reward(), linear()
    for call in range(2):
        together = torch.cat([part["paid"][call] for part in found])
        torch.testing.assert_close(together, judge(images(), None))
    gradient(model, images())
    for part in found:
        torch.testing.assert_close(part["gradient"], model.weight.grad)


if __name__ == "__main__":
    _process(int(sys.argv[1]), sys.argv[2])
