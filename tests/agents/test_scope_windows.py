import dataclasses

import pytest
import torch

from agents import scope_windows
from agents.adascope import Trainer, train
from agents.scope_windows import NEVER, Arguments, Looked, curves_of, look, main, spread
from genenv.rollout import generator_policy, run_episode
from genenv.vector_env import unwrapped
from genenv.viz.windows import save_windows
from tests.agents.test_scope_table import SMALL


def test_every_image_is_looked_at_before_every_decision():
    config = dataclasses.replace(SMALL, scope="adaptive", num_probes=None, detector=NEVER, num_steps=6)
    trainer = Trainer(config)
    looked = look(trainer, 6)
    assert looked.semantic.shape == looked.reward.shape == (6, 6)
    env = trainer.env
    episode = run_episode(
        env, generator_policy(env), list(range(scope_windows.SEEDS, scope_windows.SEEDS + 4))
    )
    images = unwrapped(env).sampler.decoder(episode.observations["denoised"].flatten(0, 1))
    expected = trainer.reward(images, episode.context.repeat(6)).view(6, 4)
    torch.testing.assert_close(looked.reward[:, :4], expected)
    assert torch.equal(looked.context[:4], episode.context)


def test_windows_are_told_by_mean_and_deviation():
    inside = torch.tensor([[0, 1], [1, 1], [1, 0], [0, 0]], dtype=torch.bool)
    assert spread(inside) == {
        "images": "2",
        "start": "0.50 (0.71)",
        "end": "2.50 (0.71)",
        "share": "0.50 (0.00)",
    }


def test_a_run_is_looked_into(tmp_path, capsys):
    runs = []
    for scope in ("adaptive", "fixed:0:2", "fixed:2:4"):
        runs.append(tmp_path / scope.replace(":", "-"))
        train(dataclasses.replace(SMALL, scope=scope, num_probes=1, num_steps=8), runs[-1])
    capsys.readouterr()
    main(Arguments(runs[0], tuple(runs[1:]), num_images=8, thresholds=(0.5,), out=tmp_path / "windows.png"))
    text = capsys.readouterr().out
    assert "before training" in text
    assert "after training" in text
    assert "thresholds 0.5" in text
    assert "2 to 3" in text
    assert (tmp_path / "windows.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"adaptive must have a fixed scope, got 'adaptive'"):
        main(Arguments(runs[0], (runs[0],), num_images=8))


def test_curves_and_windows_must_fit(tmp_path):
    line = torch.linspace(0, 1, 5)
    save_windows(tmp_path / "a.png", {}, {"flat": torch.ones(5)}, {"all": line})
    with pytest.raises(ValueError, match="curves must be 1 to 3, got 0"):
        save_windows(tmp_path / "b.png", {}, {}, {"all": line})
    with pytest.raises(ValueError, match=r"of as many decisions, got \[4, 5\]"):
        save_windows(tmp_path / "b.png", {}, {"one": line[:4]}, {"all": line})
    assert not (tmp_path / "b.png").exists()


def test_one_judge_has_one_curve():
    looked = Looked(torch.zeros(3, 2), torch.tensor([[1.0, 3.0]] * 3), torch.zeros(2))
    both = curves_of(dataclasses.replace(SMALL, semantic="hpsv2"), looked)
    assert list(both) == ["semantic: hpsv2", "reward: classifier"]
    one = curves_of(SMALL, looked)
    assert list(one) == ["semantic and reward: classifier"]
    assert one["semantic and reward: classifier"].tolist() == [2.0] * 3


def test_a_part_without_a_held_out_reward_is_named(tmp_path, monkeypatch):
    train(dataclasses.replace(SMALL, scope="fixed:0:2"), tmp_path / "run")
    read = scope_windows.read_curve
    monkeypatch.setattr(
        scope_windows, "read_curve", lambda *a: dataclasses.replace(read(*a), held_out={0: {"fid": 1.0}})
    )
    with pytest.raises(ValueError, match="run has no held-out reward to tell a gain by"):
        scope_windows._gains(Arguments(tmp_path, (tmp_path / "run",)))
