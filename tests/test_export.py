import json
import sys

import gymnasium as gym
import pytest
import torch

from genenv import cli, grids
from genenv.checkpoints import read_state_dict, save_tensors
from genenv.export import (
    DDPM,
    DIFFUSION,
    FLOW,
    SCHEDULERS,
    at_steps,
    for_diffusers,
    read_schedule,
    schedule_text,
    write_schedule,
    write_weights,
)
from genenv.solvers import LinearPath, VPLinear, sample
from genenv.tiers import load_part, write_manifest

SOLVERS = dict(zip(SCHEDULERS, ("euler", "heun", "dpmpp2m", "euler"), strict=True))
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers


def denoiser_of(env_id, number):
    sampler = gym.make_vec(env_id, num_envs=1, reward="none").unwrapped.sampler
    return sampler.denoiser(torch.arange(number) % 10)


def run(scheduler, denoiser, x):
    """Returns what a scheduler of diffusers makes of x = data + sigma noise, called as its pipelines do, and the calls.

    Its own latents are those, or variance-preserving, or on the straight path.
    """
    flow, multistep = hasattr(scheduler, "stretch_shift_to_terminal"), hasattr(scheduler, "model_outputs")
    level = scheduler.sigmas[0].double()
    x = x * (1 - level if flow else (1 + level**2) ** -0.5 if multistep else 1)
    for timestep in scheduler.timesteps:
        level = scheduler.sigmas[scheduler.step_index or 0].double()
        scale = 1 - level if flow else (1 + level**2) ** -0.5
        latents = x if flow else scheduler.scale_model_input(x, timestep)
        sigma = level / scale if flow else level
        data = denoiser((latents / scale).float(), sigma.expand(len(x)))
        output = (latents - data) / level if flow else (latents / scale - data) / level
        x = scheduler.step(output.float(), timestep, x.float(), return_dict=False)[0]
    return x, len(scheduler.timesteps)


@pytest.mark.parametrize("env_id", ["AdaGen/DiT-v0", "AdaGen/SiT-v0"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_scheduler_of_diffusers_makes_our_samples_with_the_exported_values(env_id, name):
    diffusers = pytest.importorskip("diffusers")
    levels, denoiser = grids.edm(7, 20.0, 0.02), denoiser_of(env_id, 6)
    scheduler = getattr(diffusers, name)(**({} if name == FLOW else DDPM))
    scheduler.set_timesteps(**for_diffusers(levels, name))
    followed = scheduler.sigmas.double().unique_consecutive()
    if name == FLOW:
        followed = followed / (1 - followed)
    x = followed[0] * torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs, calls = run(scheduler, denoiser, x)
        ours, nfe = sample(denoiser, x.float(), followed, SOLVERS[name])
    assert calls == nfe
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
    moved = 0.06 if name == "DPMSolverMultistepScheduler" else 1e-3  # to whole timesteps
    torch.testing.assert_close(followed, levels, rtol=moved, atol=0)


def test_the_network_is_told_the_times_of_the_exported_levels():
    diffusers = pytest.importorskip("diffusers")
    levels, path = grids.edm(9, 40.0, 0.03), VPLinear()
    alphas_cumprod = (2 * path.log_alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000)).exp()
    betas = 1 - alphas_cumprod / torch.cat([torch.ones(1), alphas_cumprod[:-1]])
    config = {"trained_betas": betas.tolist()}  # k means the time (k + 1) / 1000
    for name, most in zip(DIFFUSION, (0.1, 0.1, 0.51), strict=True):
        scheduler = getattr(diffusers, name).from_config(config)
        scheduler.set_timesteps(**for_diffusers(levels, name, config))
        found = scheduler.timesteps.double().unique_consecutive()
        expected = 1000 * path.time_of(levels[:-1]) - 1
        assert (found - expected).abs().max() < most
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(**for_diffusers(levels, FLOW))
    times = 1 - scheduler.timesteps.double() / 1000
    torch.testing.assert_close(times, LinearPath().time_of(levels[:-1]), atol=1e-6, rtol=1e-6)


SCALED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LEVELS = grids.edm(6, 20.0, 0.02)


@pytest.mark.parametrize(
    ("levels", "name", "config", "message"),
    [
        (LEVELS, "LMSDiscreteScheduler", None, "scheduler must be one of EulerDiscrete.* got 'LMSDiscrete"),
        (
            LEVELS,
            "EulerDiscreteScheduler",
            SCALED,
            "knows noise levels from 14.61 to 0.02917, got 20 to 0.02",
        ),
        (grids.edm(6, 200.0, 0.02), "HeunDiscreteScheduler", None, "from 157.4 to 0.01, got 200 to 0.02"),
        (grids.edm(6, 20.0, 0.002), "HeunDiscreteScheduler", None, "from 157.4 to 0.01, got 20 to 0.002"),
        (
            grids.log_snr(600, 20.0, 0.02),
            "DPMSolverMultistepScheduler",
            None,
            "takes whole timesteps, and two of 600 fall on one",
        ),
        (LEVELS, FLOW, {"shift": 3.0}, "moves the noise levels to .* switch its shift"),
        (torch.tensor([1.0, 2, 0]), FLOW, None, "a grid must fall, got 1 before 2"),
    ],
)
def test_what_a_scheduler_cannot_follow_is_refused(levels, name, config, message):
    pytest.importorskip("diffusers")
    with pytest.raises(ValueError, match=message):
        for_diffusers(levels, name, config)


def test_without_diffusers_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"pip install 'genenv\[diffusers\]'"):
        for_diffusers(LEVELS, FLOW)


@pytest.fixture
def run_dir(tmp_path):
    """A run directory with a schedule of two numbers of steps."""
    write_schedule(tmp_path / "schedule.json", {k: grids.edm(k, 20.0, 0.05) for k in (4, 10)})
    return tmp_path


def test_a_schedule_is_read_as_it_was_written(run_dir):
    for path in (run_dir, run_dir / "schedule.json"):
        found = read_schedule(path)
        assert list(found) == [4, 10]
        assert all(torch.equal(found[k], grids.edm(k, 20.0, 0.05)) for k in found)
    assert json.loads((run_dir / "schedule.json").read_text())["sigma_max"] == 20.0


def test_other_numbers_of_steps_are_resampled_from_the_nearest(run_dir):
    schedule = read_schedule(run_dir)
    assert torch.equal(at_steps(schedule, 4), schedule[4])
    assert torch.equal(at_steps(schedule, 3), grids.resampled(schedule[4], 3))
    assert torch.equal(at_steps(schedule, 7), grids.resampled(schedule[10], 7))
    assert torch.equal(at_steps(schedule, 30), grids.resampled(schedule[10], 30))
    assert torch.equal(at_steps({4: schedule[4]}, None), schedule[4])
    with pytest.raises(ValueError, match="steps must be a number, such as one of 4, 10, got None"):
        at_steps(schedule, None)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        at_steps(schedule, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "is no schedule of noise levels: Expecting value"),
        ("[1, 2]", "is no schedule of noise levels"),
        ("{}", "is no schedule of noise levels: KeyError: 'sigmas'"),
        ('{"sigmas": [1.0, 0.0]}', "is no schedule of noise levels"),
        ('{"sigmas": {}}', "it has none"),
        ('{"sigmas": {"x": [1.0, 0.0]}}', "is no schedule of noise levels: invalid literal"),
        ('{"sigmas": {"1": ["a", 0.0]}}', "is no schedule of noise levels"),
        ('{"sigmas": {"2": [1.0, 0.0]}}', "must have K \\+ 1 levels .* for 2 it has 2"),
        ('{"sigmas": {"2": [1.0, 3.0, 0.0]}}', "a grid must fall, got 1 before 3 at step 0"),
        ("[" * 100_000, "is no schedule of noise levels: maximum recursion depth"),
    ],
)
def test_a_file_that_is_no_schedule_is_refused_by_name(tmp_path, capsys, text, message):
    path = tmp_path / "mine.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"mine.json .*{message}"):
        read_schedule(path)
    assert cli.main(["export", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"genenv export: {path} is no schedule")


def test_the_command_prints_a_schedule_that_it_can_read(run_dir, capsys, tmp_path):
    assert cli.main(["export", str(run_dir), "--steps", "6"]) == 0
    shown = capsys.readouterr().out
    assert shown == schedule_text({6: grids.resampled(grids.edm(4, 20.0, 0.05), 6)})
    copy = tmp_path / "copy.json"
    assert cli.main(["export", str(run_dir), "--steps", "6", "--out", str(copy)]) == 0
    assert capsys.readouterr().out == f"{copy}\n"
    assert copy.read_text() == shown
    assert cli.main(["export", str(copy)]) == 0
    assert capsys.readouterr().out == shown


def test_the_command_gives_every_scheduler_its_arguments(run_dir, capsys):
    pytest.importorskip("diffusers")
    assert cli.main(["export", str(run_dir), "--to", "diffusers", "--steps", "10"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {name: for_diffusers(grids.edm(10, 20.0, 0.05), name) for name in SCHEDULERS}
    assert {name: {key: len(each) for key, each in kwargs.items()} for name, kwargs in found.items()} == {
        "EulerDiscreteScheduler": {"sigmas": 11},
        "HeunDiscreteScheduler": {"timesteps": 10},
        "DPMSolverMultistepScheduler": {"timesteps": 10},
        FLOW: {"sigmas": 10},
    }


def test_the_command_follows_a_models_own_configuration(run_dir, capsys, tmp_path):
    pytest.importorskip("diffusers")
    config = tmp_path / "scheduler_config.json"
    command = ["export", str(run_dir), "--to", "diffusers", "--steps", "4", "--scheduler-config", str(config)]
    config.write_text(json.dumps({"_class_name": FLOW}))
    assert cli.main(command) == 0
    assert list(json.loads(capsys.readouterr().out)) == [FLOW]
    config.write_text(json.dumps({"_class_name": "DDIMScheduler", **DDPM}))
    assert cli.main(command) == 0
    assert list(json.loads(capsys.readouterr().out)) == list(DIFFUSION)
    config.write_text(json.dumps(SCALED))
    assert cli.main(command) == 2
    assert capsys.readouterr().err.count("knows noise levels from 14.61") == 3


def test_the_command_leaves_out_what_cannot_follow_and_says_why(capsys, tmp_path):
    pytest.importorskip("diffusers")
    write_schedule(tmp_path / "schedule.json", {3: grids.edm(3, 300.0, 0.1)})
    assert cli.main(["export", str(tmp_path), "--to", "diffusers"]) == 0
    shown = capsys.readouterr()
    assert list(json.loads(shown.out)) == [FLOW]
    lines = shown.err.splitlines()
    assert [line.split()[2] for line in lines] == list(DIFFUSION)
    assert all(line.startswith("left out: ") and "got 300 to 0.1" in line for line in lines)


def test_a_folder_without_a_schedule_is_told_what_writes_one(tmp_path, capsys):
    assert cli.main(["export", str(tmp_path)]) == 2
    assert f"there is no {tmp_path / 'schedule.json'}; a run of agents.art, or of " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("layout", "part", "entry", "name"),
    [
        ("llamagen", "llamagen", "model", "layers.0.attention.wqkv.weight"),
        ("taming", "vqgan", "state_dict", "transformer.blocks.0.attn.query.weight"),
    ],
)
def test_a_tuned_network_is_written_as_its_papers_code_has_it(layout, part, entry, name, tmp_path, capsys):
    state = {key: 1.1 * value for key, value in load_part(part, "digits").state_dict().items()}
    folder = tmp_path / "run" / "generator"
    folder.mkdir(parents=True)
    save_tensors(state, folder / f"{part}.safetensors")
    write_manifest(folder, "digits", base="digits")
    out = tmp_path / "tuned.pt"
    assert cli.main(["export", str(tmp_path / "run"), "--to", layout, "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    written = torch.load(out, weights_only=True)
    assert list(written) == [entry]
    assert name in written[entry]
    prefix = "transformer." if layout == "taming" else ""
    found = {key.removeprefix(prefix): value for key, value in read_state_dict(out).items()}
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], value) for key, value in state.items())
    assert cli.main(["export", str(tmp_path / "run"), "--to", layout]) == 2
    assert "needs --out" in capsys.readouterr().err
    with pytest.raises(ValueError, match="layout must be one of llamagen, taming, got 'gpt'"):
        write_weights(folder, "gpt", out)
