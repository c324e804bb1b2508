"""Several processes do what one does."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed, nn
from torch.multiprocessing import start_processes

from agents import processes
from genenv.distributed import gather

ROOT = Path(__file__).parents[2]
VALUES = torch.tensor([3.0, -1.0, 2.0, 7.0, 0.5])


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.ModuleList([nn.Linear(1, 3), nn.Linear(1, 1)])


def loss(model, values):
    """Uses the first layer alone where there are values, and neither where there are none."""
    return model[0](values[:, None]).square().sum() / len(VALUES)


def found():
    own = processes.own(len(VALUES))
    values, model = VALUES[own.start : own.stop], network()
    if len(values):
        loss(model, values).backward()
    processes.sum_gradients(model.parameters())
    return {
        "own": list(own),
        "mean": processes.mean(values),
        "standardised": processes.standardise(values),
        "gathered": gather(values)[0],
        "gradient": model[0].weight.grad,
        "first": processes.is_first(),
    }


def test_a_process_alone_has_all_images():
    alone = found()
    assert alone["own"] == [0, 1, 2, 3, 4]
    assert alone["first"]
    assert torch.equal(alone["gathered"], VALUES)
    torch.testing.assert_close(alone["mean"], VALUES.double().mean())
    torch.testing.assert_close(alone["standardised"].std(), torch.tensor(1.0))
    torch.testing.assert_close(alone["standardised"].mean(), torch.tensor(0.0), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("ranks", "total", "steps"), [(1, 5, 3), (3, 5, 2), (4, 9, 3), (5, 3, 2)])
def test_every_decision_is_of_the_process_that_has_its_image(monkeypatch, ranks, total, steps):
    rows = torch.randperm(steps * total, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(processes, "num_ranks", lambda: ranks)
    seen = []
    for rank in range(ranks):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        images = processes.own(total)
        mine = processes.own_decisions(rows, total)
        played = [(row // len(images), images[row % len(images)]) for row in mine.tolist()]
        assert played == [(row // total, row % total) for row in rows.tolist() if row % total in images]
        seen += played
    assert sorted(seen) == [(t, i) for t in range(steps) for i in range(total)]


def test_processes_together_have_the_numbers_of_one(tmp_path):
    number = 3
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(number), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=100)
    parts = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(number)]
    alone = found()
    assert [image for part in parts for image in part["own"]] == alone["own"]
    assert [part["first"] for part in parts] == [True] + [False] * (number - 1)
    torch.testing.assert_close(torch.cat([part["standardised"] for part in parts]), alone["standardised"])
    for part in parts:
        for name in ("mean", "gathered", "gradient"):
            torch.testing.assert_close(part[name], alone[name])


ADAGEN = (
    "--num-steps 2 --num-iterations 2 --hidden-dim 16 --num-envs 15 --num-minibatches 2 --num-epochs 2 "
    "--discriminator-warmup 2 --discriminator-batch 12 --eval-images 80 --chunk-size 5 "
    '--reward {"adversarial":1.0,"loo_fid":1.0}'
)
GRPO = (
    "--num-iterations 2 --num-groups 5 --group-size 3 --num-epochs 2 --eval-images 80 --chunk-size 4 --seed 1 "
    "--learning-rate 0 1e-3"
)
ADASCOPE = (
    "--num-iterations 2 --num-groups 3 --group-size 2 --num-updates 4 --num-steps 8 --eval-images 80 --chunk-size 4 "
    "--learning-rate 0 1e-3 --num-probes 1 --reward classifier"
)
CRITIC = f"{ADASCOPE} --host tdpo --scope fixed:1:3 --wake-interval 1 --wake-threshold 0.5"


@pytest.mark.parametrize(
    ("agent", "flags"),
    [("adagen", ADAGEN), ("grpo", GRPO), ("adascope", ADASCOPE), ("adascope", CRITIC)],
)
def test_torchrun_trains_to_the_numbers_of_one_process(agent, flags, tmp_path):
    from agents.command_line import main  # much to load, which the processes above do without

    module = importlib.import_module(f"agents.{agent}")
    arguments = [*flags.split(), "--out"]
    main(module.Config, module.PRESETS, module.train, [*arguments, str(tmp_path / "alone")])
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", f"agents.{agent}", *arguments, str(tmp_path / "together")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    alone, together = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("alone", "together")
    )
    assert [record.keys() for record in together] == [record.keys() for record in alone]
    alone, together = (
        [{n: v for n, v in record.items() if not n.startswith("seconds/")} for record in records]
        for records in (alone, together)
    )
    for one, other in zip(alone, together, strict=True):
        assert other == pytest.approx(one, rel=1e-3, abs=1e-4)


def take_part(rank, number, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=number
    )
    torch.save(found(), f"{folder}/{rank}.pt")
    processes.stop()


if __name__ == "__main__":  # a fork each, which has the libraries already
    start_processes(take_part, (int(sys.argv[1]), sys.argv[2]), int(sys.argv[1]), start_method="fork")
