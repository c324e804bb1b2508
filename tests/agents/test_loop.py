"""The loop: what is logged, saved and evaluated when, and where it stops."""

import dataclasses
import json
import math

import pytest
import torch

from agents.loop import Diverged, Parts, learn
from agents.runs import load_checkpoint, open_run, save_checkpoint
from tests.agents.test_runs import Config


class Learner:
    """Adds its rate to its weight at every iteration; tells a reward."""

    def __init__(self, rewards=()):
        self.iteration, self.weight, self.rewards = 0, torch.zeros(2), list(rewards)
        self.finished = False

    def step(self):
        self.iteration += 1
        reward = self.rewards[self.iteration - 1] if self.rewards else 0.5
        if reward == "weights":
            self.weight[1] = math.inf
            reward = 0.5
        return {"iteration": self.iteration, "images": 10 * self.iteration, "reward": reward}

    def state_dict(self):
        return {"iteration": self.iteration, "policy": {"weight": self.weight}, "none": None}

    def load_state_dict(self, state):
        self.iteration, self.weight = state["iteration"], state["policy"]["weight"]


@dataclasses.dataclass
class Found:
    """What an evaluation found."""

    metrics: dict


def learned(out, learner, resume=False, iterations=7, evaluated=None):
    made = [] if evaluated is None else evaluated

    def evaluate():
        made.append(learner.iteration)
        return Found({"fid": float(learner.iteration)})

    with open_run(Config(num_iterations=iterations), out, learner, resume) as run:
        found = learn(learner, run, evaluate, iterations, eval_every=3, save_every=2)
    return found, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_run_is_evaluated_at_its_interval_and_at_its_end(tmp_path):
    evaluated = []
    found, records = learned(tmp_path, Learner(), evaluated=evaluated)
    assert evaluated == [3, 6, 7]
    assert found.metrics == {"fid": 7.0}
    assert [r["iteration"] for r in records] == list(range(1, 8))
    assert [r["iteration"] for r in records if "held_out/fid" in r] == [3, 6, 7]
    assert load_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 7


def test_an_interrupted_run_goes_on_from_its_checkpoint(tmp_path):
    class Stopped(Learner):
        def step(self):
            if self.iteration == 5:
                raise KeyboardInterrupt
            return super().step()

    with pytest.raises(KeyboardInterrupt):
        learned(tmp_path, Stopped())
    assert load_checkpoint(tmp_path / "checkpoint.pt")["iteration"] == 4
    _, records = learned(tmp_path, Learner(), resume=True)
    assert [r["iteration"] for r in records] == list(range(1, 8))


def test_a_finished_run_is_evaluated_once_more_when_it_is_resumed(tmp_path):
    learned(tmp_path, Learner())
    evaluated = []
    found, records = learned(tmp_path, Learner(), resume=True, evaluated=evaluated)
    assert evaluated == [7]
    assert found.metrics == {"fid": 7.0}
    assert len(records) == 7


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (math.nan, "iteration 6: reward is nan; the last checkpoint of .* is kept"),
        (-math.inf, "iteration 6: reward is -inf"),
        ("weights", r"iteration 6: policy\.weight holds numbers that are not finite"),
    ],
)
def test_the_first_number_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(tmp_path, bad, message):
    with pytest.raises(Diverged, match=message):
        learned(tmp_path, Learner([0.5] * 5 + [bad, 0.5]))
    kept = load_checkpoint(tmp_path / "checkpoint.pt")
    assert kept["iteration"] == 4
    assert kept["policy"]["weight"].isfinite().all()
    _, records = learned(tmp_path, Learner(), resume=True)
    assert [r["iteration"] for r in records] == list(range(1, 8))


def test_progress_is_told_in_lines_where_there_is_no_terminal(tmp_path, capsys):
    learned(tmp_path / "a[/b]", Learner())
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [f"iteration {i} of 7" for i in (3, 6, 7)]
    assert "held-out FID 3.00, recall -" in lines[0]


class InParts(Parts):
    """A network with its optimiser, some random numbers, and a part that this run does not have."""

    def __init__(self):
        super().__init__()
        self.network = torch.nn.Linear(2, 1)
        self.optimiser = torch.optim.Adam(self.network.parameters())
        self.generator = torch.Generator().manual_seed(3)

    @property
    def parts(self):
        return {
            "network": self.network,
            "optimiser": self.optimiser,
            "generator": self.generator,
            "absent": None,
        }

    def step(self):
        loss = self.network(torch.rand(5, 2, generator=self.generator)).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.iteration, self.images, self.seconds = self.iteration + 1, self.images + 5, self.seconds + 0.5
        return loss.item()


def test_a_learner_made_of_parts_goes_on_where_it_was(tmp_path):
    whole, first, second = InParts(), InParts(), InParts()
    for part in (whole, first):
        part.network.load_state_dict(second.network.state_dict())
    losses = [whole.step() for _ in range(4)]
    found = [first.step() for _ in range(2)]
    save_checkpoint(first.state_dict(), tmp_path / "checkpoint.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
    assert (second.iteration, second.images, second.seconds) == (2, 10, 1.0)
    assert found + [second.step() for _ in range(2)] == losses


def test_a_state_that_lacks_a_part_is_refused():
    state = InParts().state_dict()
    assert state["absent"] is None
    del state["generator"]
    with pytest.raises(KeyError, match="generator"):
        InParts().load_state_dict(state)
