"""Each host's loss against a few lines by hand."""

import dataclasses
import math

import pytest
import torch

from agents.critic import ContextStatistics, TemporalCritic
from agents.hosts import HOSTS, Terms


@dataclasses.dataclass
class Weights:
    clip: float = 0.1
    kl_weight: float = 0.3
    beta: float = 2.0


def terms(images, number=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = 0.2 * torch.randn(5, number, images, generator=generator)
    log_prob, old, reference, kl, advantage = values
    return Terms(log_prob, old, reference, kl.abs(), 5 * advantage)


def by_hand(host, t, w, i):
    ratio = math.exp(t.log_prob[i, 0] - t.old[i, 0])
    clipped = min(max(ratio, 1 - w.clip), 1 + w.clip)
    a = t.advantage[i, 0].item()
    gain = min(ratio * a, clipped * a)
    if host in ("ddpo", "tdpo"):
        return -gain
    if host == "ddpo-sf":
        return -a * t.log_prob[i, 0].item()
    if host in ("dpok", "flow-grpo"):
        return -gain + w.kl_weight * t.kl[i, 0].item()
    ratios = [math.exp(t.log_prob[i, k] - t.reference[i, k]) for k in (0, 1)]
    winner, loser = (math.log(min(max(r, 1 - w.clip), 1 + w.clip)) for r in ratios)
    return -math.log(1 / (1 + math.exp(-w.beta * (winner - loser))))


@pytest.mark.parametrize("weights", [Weights(), Weights(clip=0.5, kl_weight=0.0, beta=0.1)])
@pytest.mark.parametrize("host", HOSTS)
def test_the_loss_of_each_unit_is_the_one_of_the_paper(host, weights):
    given = terms(1 + HOSTS[host].in_pairs)
    found = HOSTS[host].loss(given, weights)
    expected = [by_hand(host, given, weights, i) for i in range(7)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_ratio_that_has_gone_too_far_gets_no_gradient_but_can_come_back():
    log_prob = torch.tensor([[0.5], [0.5]], requires_grad=True)
    zeros = torch.zeros(2, 1)
    given = Terms(log_prob, zeros, None, None, torch.tensor([[1.0], [-1.0]]))
    HOSTS["ddpo"].loss(given, Weights()).sum().backward()
    assert log_prob.grad[0] == 0
    assert log_prob.grad[1] > 0


def remembered(batches, size, least):
    """Returns what `ContextStatistics` is to say of (rewards, contexts), one batch after another."""
    memory, out = {}, []
    for rewards, contexts in batches:
        for reward, context in zip(rewards, contexts, strict=True):
            memory[context] = ([*memory.get(context, []), reward])[-size:]
        batch = torch.tensor(rewards, dtype=torch.float64)
        found, seen = [], memory
        for reward, context in zip(rewards, contexts, strict=True):
            kept = torch.tensor(seen[context], dtype=torch.float64)
            of = kept if counts(batches, out, context) >= least else batch
            found.append(((reward - of.mean()) / (of.std(correction=0) + 1e-8)).item())
        out.append(found)
    return out


def counts(batches, done, context):
    return sum(contexts.count(context) for _, contexts in batches[: len(done) + 1])


@pytest.mark.parametrize(("size", "least"), [(4, 2), (8, 8), (3, 1)])
def test_rewards_are_standardised_by_those_of_their_context(size, least):
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(4):
        rewards = torch.randn(6, generator=generator).tolist()
        batches.append((rewards, torch.randint(3, (6,), generator=generator).tolist()))
    statistics = ContextStatistics(3, size, least)
    for number, (rewards, contexts) in enumerate(batches):
        if number == 2:  # an exact continuation
            state, statistics = statistics.state_dict(), ContextStatistics(3, size, least)
            statistics.load_state_dict(state)
        found = statistics.standardise(torch.tensor(rewards), torch.tensor(contexts))
        expected = remembered(batches, size, least)[number]
        assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_a_critic_expects_nothing_at_first_and_learns():
    torch.manual_seed(0)
    critic, features = TemporalCritic(6, (16, 8)), torch.randn(5, 40, 6)
    assert not critic(features).any()
    assert critic(features).shape == (5, 40)
    goal, optimiser = features[..., 0].tanh(), torch.optim.Adam(critic.parameters(), lr=1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        loss = (critic(features) - goal).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.2 * goal.var()


def test_dormant_units_are_woken_without_an_effect():
    torch.manual_seed(0)
    critic, features = TemporalCritic(6, (16, 8)), torch.randn(200, 6)
    critic.output.weight.data.normal_()
    for layer, unit in ((critic.hidden[0], 3), (critic.hidden[1], 5)):
        layer.weight.data[unit], layer.bias.data[unit] = 0, -1
    before, generator = critic(features), torch.Generator().manual_seed(0)
    assert critic.wake(features, 1e-6, generator) >= 2
    torch.testing.assert_close(critic(features), before)
    assert critic.hidden[0].weight[3].any()
    assert not critic.output.weight[:, 5].any()
    assert critic.wake(features, 1e-6, generator) == 0
