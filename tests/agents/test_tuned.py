import re
import shutil

import pytest
import torch
from pipeline_folders import label_pipeline, prompt_pipeline
from torch import nn

from agents.tuned import add_lora, plain, save_lora, write_generator
from genenv.conditions import both
from genenv.pipelines import load_pipeline

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
pytest.importorskip("peft")
from diffusers import DiTPipeline, StableDiffusionPipeline

PROMPTS = ["a handwritten three", "seven"]
N = len(PROMPTS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipelines") / "base"
    prompt_pipeline(folder)
    (folder / "LICENSE.md").write_text("open")
    (folder / "v1-pruned.ckpt").write_text("the same again, in one file")
    (folder / ".cache").mkdir()
    return folder


def tuned(folder, rank=2, **kwargs):
    """Returns a pipeline with random low-rank changes."""
    pipeline = load_pipeline(str(folder), trainable=True, **kwargs)
    add_lora(pipeline.network, rank)
    torch.manual_seed(1)
    for name, parameter in pipeline.network.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return pipeline


@torch.no_grad()
def noise_of(pipeline, network=None):
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(2 * N, *pipeline.latent_shape, generator=generator)
    condition = both(pipeline.condition, torch.arange(N))
    return (network or pipeline.network)(latents, torch.tensor([3.0, 500, 900, 17]), condition)[0]


def test_low_rank_changes_of_a_pipeline_are_attentions_and_start_at_none(folder):
    base = load_pipeline(str(folder), PROMPTS, trainable=True)
    expected = noise_of(base)
    add_lora(base.network, 3)
    trained = {name for name, p in base.network.named_parameters() if p.requires_grad}
    layers = {re.sub(r"^.*(attn\d)\.|\.lora_[AB].*$", "", name) for name in trained}
    assert layers == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(".lora_" in name for name in trained)
    torch.testing.assert_close(noise_of(base), expected)


@pytest.mark.parametrize("rank", [1, 4])
def test_diffusers_reads_the_low_rank_changes(folder, tmp_path, rank):
    pipeline = tuned(folder, rank, prompts=PROMPTS)
    save_lora(pipeline.network, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    theirs = StableDiffusionPipeline.from_pretrained(folder)
    base = load_pipeline(str(folder), PROMPTS)
    theirs.load_lora_weights(tmp_path)
    other = load_pipeline(str(folder), PROMPTS).network
    other.model = theirs.unet
    torch.testing.assert_close(noise_of(base, other), noise_of(pipeline))
    assert (noise_of(base) - noise_of(pipeline)).abs().max() > 0.01


@pytest.mark.parametrize("lora", [True, False])
def test_a_tuned_pipeline_is_a_pipeline_again(folder, tmp_path, lora):
    if lora:
        pipeline = tuned(folder, prompts=PROMPTS)
    else:
        pipeline = load_pipeline(str(folder), PROMPTS, trainable=True)
        nn.init.normal_(pipeline.network.model.conv_out.weight)
    out = tmp_path / "generator"
    for _ in range(2):  # an old folder is replaced
        write_generator(pipeline.network, "unet", str(folder), out)
    expected = noise_of(pipeline)
    own = load_pipeline(str(out), PROMPTS)
    torch.testing.assert_close(noise_of(own), expected)
    assert (noise_of(load_pipeline(str(folder), PROMPTS)) - expected).abs().max() > 0.01
    own.network.model = StableDiffusionPipeline.from_pretrained(out).unet
    torch.testing.assert_close(noise_of(own), expected)
    names = {path.name for path in folder.iterdir()} - {"v1-pruned.ckpt", ".cache"}
    assert {path.name for path in out.iterdir()} == names
    assert list(tmp_path.iterdir()) == [out]
    write_generator(own.network, "unet", str(out), out)  # tuned on, in its own place
    torch.testing.assert_close(noise_of(load_pipeline(str(out), PROMPTS)), expected)


def test_a_tuned_dit_is_written_whole(tmp_path):
    label_pipeline(tmp_path / "base")
    pipeline = tuned(tmp_path / "base")
    with pytest.raises(
        ValueError, match="into a UNet alone, got a DiTTransformer2DModel: write_generator writes"
    ):
        save_lora(pipeline.network, tmp_path / "lora")
    write_generator(pipeline.network, "transformer", str(tmp_path / "base"), tmp_path / "generator")
    own = load_pipeline(str(tmp_path / "generator"))
    torch.testing.assert_close(noise_of(own), noise_of(pipeline))
    own.network.model = DiTPipeline.from_pretrained(tmp_path / "generator").transformer.eval()
    torch.testing.assert_close(noise_of(own), noise_of(pipeline))
    assert own.context_names[3] == "class 3"


def test_there_must_be_low_rank_changes_to_be_saved(folder, tmp_path):
    with pytest.raises(ValueError, match="the network has no low-rank changes: add_lora makes them"):
        save_lora(load_pipeline(str(folder), PROMPTS).network, tmp_path)


def test_a_pipeline_that_cannot_be_written_leaves_the_old_one(folder, tmp_path):
    out = tmp_path / "generator"
    shutil.copytree(folder, out)
    pipeline = load_pipeline(str(folder), PROMPTS)
    (tmp_path / "nowhere").mkdir()
    with pytest.raises(FileNotFoundError):
        write_generator(pipeline.network, "unet", str(tmp_path / "nowhere"), out)
    assert sorted(tmp_path.iterdir()) == [out, tmp_path / "nowhere"]
    torch.testing.assert_close(noise_of(load_pipeline(str(out), PROMPTS)), noise_of(pipeline))


def test_adding_the_changes_leaves_the_network_as_it_is(folder):
    pipeline = tuned(folder, prompts=PROMPTS)
    expected = noise_of(pipeline)
    whole = plain(pipeline.network)
    torch.testing.assert_close(noise_of(pipeline, whole), expected)
    assert not any("lora" in name for name in whole.state_dict())
    assert torch.equal(noise_of(pipeline), expected)
    assert plain(whole) is whole
