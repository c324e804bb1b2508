"""Nothing that lies in a folder of weights runs, whatever its files say of it and whatever code lies beside them."""

import dataclasses
import json
import pickle
import re
import shutil
import warnings

import pytest
import torch
from pipeline_folders import prompt_pipeline

from genenv.checkpoints import CheckpointError, read_state_dict
from genenv.models.unet import load_unet
from genenv.pipelines import load_pipeline
from genenv.releases import DOWNLOADS, RELEASES
from genenv.rewards import make_reward
from genenv.rewards.clip import load_clip, load_open_clip
from genenv.tiers import backbone_folder, load_part, write_manifest

pytest.importorskip("transformers")
pytest.importorskip("open_clip")

IMAGES, LABELS = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(4)
TOKENIZER = {
    "tokenizer_class": "Planted",
    "auto_map": {"AutoTokenizer": ["planted.Planted", "planted.Planted"]},
    "trust_remote_code": True,
}
CONFIG = {
    "auto_map": {"AutoConfig": "planted.Planted", "AutoModel": "planted.Planted"},
    "trust_remote_code": True,
    "model_type": "planted",
    "architectures": ["Planted"],
    "attn_implementation": "planted/kernel",
    "_attn_implementation": "planted/kernel",
    "_attn_implementation_internal": "planted/kernel",
    "use_kernels": True,
    "quantization_config": {"quant_method": "planted"},
    "transformers_weights": "planted.bin",
    "adapter": "planted",
    "dtype": "planted",
}


class Run:
    """Unpickles into a file that tells of it."""

    def __init__(self, proof):
        self.proof = proof

    def __reduce__(self):
        return open, (str(self.proof), "w")


@pytest.fixture
def proof(tmp_path):
    """A file that appears where planted code runs."""
    path = tmp_path / "proof"
    yield path
    assert not path.exists()


@pytest.fixture
def folder(tmp_path, proof):
    """A folder of the digits in which each library finds code to run, under the names that it looks for."""
    folder = tmp_path / "weights"
    shutil.copytree(backbone_folder("digits"), folder)
    code = f"open({str(proof)!r}, 'w')\nclass Planted:\n    pass\n"
    for place in (folder, folder / "clip", folder / "hpsv2"):
        names = (
            "planted",
            "tokenization_clip",
            "modeling_clip",
            "configuration_clip",
            "conftest",
            "sitecustomize",
        )
        for name in (*names, "__init__"):
            (place / f"{name}.py").write_text(code)
        payload = pickle.dumps(Run(proof))
        for name in (
            "pytorch_model.bin",
            "adapter_model.bin",
            "open_clip_pytorch_model.bin",
            "training_args.bin",
        ):
            (place / name).write_bytes(payload)
        (place / "adapter_config.json").write_text(
            json.dumps(
                {"base_model_name_or_path": "planted/model", "auto_mapping": {"base_model_class": "Planted"}}
            )
        )
    return folder


def change(path, **entries):
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def test_a_clip_folder_runs_nothing(folder):
    expected = make_reward("clip", "digits", "cpu")(IMAGES, LABELS)
    change(folder / "clip" / "config.json", **CONFIG)
    for tower in ("text_config", "vision_config"):
        inner = json.loads((folder / "clip" / "config.json").read_text())[tower]
        change(folder / "clip" / "config.json", **{tower: inner | CONFIG})
    change(folder / "clip" / "tokenizer_config.json", **TOKENIZER)
    change(folder / "clip" / "preprocessor_config.json", **CONFIG, image_processor_type="Planted")
    write_manifest(folder)
    assert torch.equal(make_reward("clip", str(folder), "cpu")(IMAGES, LABELS), expected)
    load_clip(folder / "clip")


def test_an_open_clip_folder_runs_nothing(folder):
    expected = make_reward("hpsv2", "digits", "cpu")(IMAGES, LABELS)
    change(folder / "hpsv2" / "tokenizer_config.json", **TOKENIZER)
    write_manifest(folder)
    assert torch.equal(make_reward("hpsv2", str(folder), "cpu")(IMAGES, LABELS), expected)


@pytest.mark.parametrize(
    ("section", "entry"),
    [
        ("text_cfg", {"tokenizer_kwargs": {"trust_remote_code": True}}),
        ("text_cfg", {"hf_model_name": "planted/model"}),
        ("text_cfg", {"tokenizer_mode": "clips"}),
        ("text_cfg", {"act_kwargs": {"approximate": "tanh"}}),
        ("vision_cfg", {"timm_model_name": "hf-hub:planted/model", "timm_model_pretrained": True}),
        ("vision_cfg", {"norm_kwargs": {"eps": 1e-6}}),
        ("vision_cfg", {"layers": [1, 1, 1, 1]}),
        ("vision_cfg", {"width": "planted"}),
        (None, {"custom_text": True}),
        (None, {"multimodal_cfg": {}}),
        (None, {"text_cfg": "planted"}),
    ],
)
def test_a_configuration_of_open_clip_says_known_numbers_alone(folder, section, entry):
    path = folder / "hpsv2" / "open_clip_config.json"
    config = json.loads(path.read_text())
    target = config["model_cfg"] if section is None else config["model_cfg"][section]
    target |= entry
    path.write_text(json.dumps(config))
    write_manifest(folder)
    name = next(iter(entry))
    with pytest.raises(CheckpointError, match=rf"open_clip_config\.json.*{name}"):
        make_reward("hpsv2", str(folder), "cpu")


@pytest.mark.parametrize("key", ["hidden_size", "hidden_act", "num_attention_heads"])
def test_a_configuration_of_transformers_says_numbers_and_names_alone(folder, key):
    path = folder / "clip" / "config.json"
    text = json.loads(path.read_text())["text_config"]
    change(path, text_config=text | {key: {"planted": 1}})
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=f"{key} must be a"):
        make_reward("clip", str(folder), "cpu")


def test_a_preprocessing_of_open_clip_is_three_numbers_twice(folder):
    path = folder / "hpsv2" / "open_clip_config.json"
    change(path, preprocess_cfg={"mean": ["planted"] * 3, "std": [1, 1, 1]})
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"open_clip_config\.json: mean must be three numbers"):
        make_reward("hpsv2", str(folder), "cpu")


def test_a_name_for_open_clip_is_one_of_its_own(tmp_path):
    for name in ("hf-hub:planted/model", f"local-dir:{tmp_path}", "roberta-ViT-B-32"):
        with pytest.raises(ValueError, match=r"model must be a (plain )?CLIP of open_clip such as"):
            load_open_clip(name, tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
@pytest.mark.parametrize("archive", [True, False])
def test_a_pickle_with_code_is_refused(tmp_path, proof, suffix, archive):
    path = tmp_path / f"weights{suffix}"
    content = {"state_dict": {"a": torch.zeros(1)}, "hook": Run(proof)}
    torch.save(content, path, _use_new_zipfile_serialization=archive)
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        read_state_dict(path)


def test_a_script_of_torch_is_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(tmp_path / "weights.pt"))
    with pytest.raises(CheckpointError, match="is not a readable checkpoint"):
        read_state_dict(tmp_path / "weights.pt")


def test_a_pickle_in_the_place_of_weights_is_refused(folder, proof, tmp_path, monkeypatch):
    torch.save({"state_dict": Run(proof)}, folder / "hpsv2" / "hpsv2.pt")
    (folder / "vq.safetensors").write_bytes(pickle.dumps(Run(proof)))
    write_manifest(folder)
    with pytest.raises(CheckpointError, match=r"hpsv2\.pt is not a readable checkpoint"):
        make_reward("hpsv2", str(folder), "cpu")
    with pytest.raises(CheckpointError, match=r"vq\.safetensors is not a readable safetensors file"):
        load_part("vq", str(folder))
    monkeypatch.setenv("GENENV_HOME", str(tmp_path))
    torch.save(Run(proof), tmp_path / RELEASES["DiT-XL-2-256x256"].file)
    with pytest.raises(CheckpointError, match=r"DiT-XL-2-256x256\.pt is not a readable checkpoint"):
        load_part("dit", "imagenet256-dit-xl-2")


@pytest.mark.parametrize("name", ["clip/planted.py", "clip/more/planted.json", "hpsv2/.hidden"])
def test_a_file_that_the_manifest_does_not_name_is_refused(folder, name):
    write_manifest(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("new")
    with pytest.raises(CheckpointError, match=f"{name} is not the file that .*manifest.json names"):
        make_reward(name.partition("/")[0], str(folder), "cpu")


def test_a_reference_with_objects_is_refused(tmp_path, proof, monkeypatch):
    import numpy as np

    from genenv.metrics.fid import read_adm_images

    reference = DOWNLOADS["adm-imagenet-256"]
    np.savez(tmp_path / reference.file, arr_0=np.array([Run(proof)], dtype=object))
    with pytest.raises(CheckpointError, match=r"is not an \.npz file with arr_0"):
        read_adm_images(tmp_path / reference.file, 1)


def test_downloads_state_their_licence_and_place():
    for name, download in DOWNLOADS.items():
        assert download.page.startswith("https://"), name
        assert download.licence, name
        assert download.url is None or download.repo is None, name
        assert dataclasses.asdict(download)["file"] == download.file


@pytest.fixture
def unet(tmp_path, proof):
    """A folder of diffusers' layout in which the library finds code to run."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    folder, blocks = (
        tmp_path / "unet_folder",
        {"down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]},
    )
    network = diffusers.UNet2DModel(
        8, 1, 1, block_out_channels=[8], norm_num_groups=2, layers_per_block=1, **blocks
    )
    diffusers.DDPMPipeline(network.eval(), diffusers.DDPMScheduler()).save_pretrained(folder)
    code = f"open({str(proof)!r}, 'w')\nclass Planted:\n    pass\n"
    for place in (folder, folder / "unet", folder / "scheduler"):
        for name in (
            "planted",
            "pipeline",
            "unet",
            "unet_2d",
            "modeling",
            "conftest",
            "sitecustomize",
            "__init__",
        ):
            (place / f"{name}.py").write_text(code)
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "planted.bin", "training_args.bin"):
            (place / name).write_bytes(pickle.dumps(Run(proof)))
        (place / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "planted/model"}))
    return folder


PLANTED = {
    "auto_map": {"AutoModel": "planted.Planted", "UNet2DModel": "planted.Planted"},
    "_auto_class": "planted.Planted",
    "trust_remote_code": True,
    "custom_pipeline": "planted",
    "_name_or_path": "planted/model",
    "_use_default_values": ["planted"],
    "attn_implementation": "planted/kernel",
    "use_kernels": True,
    "adapter": "planted",
    "torch_dtype": "planted",
}


def test_a_folder_of_diffusers_runs_nothing(unet):
    x, sigma = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([0.5, 3.0])
    expected = load_unet(str(unet))(x, sigma.double(), torch.zeros(2, dtype=torch.int64))
    for name in ("model_index.json", "unet/config.json", "scheduler/scheduler_config.json"):
        change(unet / name, **PLANTED)
    change(unet / "model_index.json", _class_name=["planted", "Planted"], unet=["planted", "Planted"])
    change(unet / "scheduler" / "scheduler_config.json", _class_name="Planted")
    found = load_unet(str(unet))(x, sigma.double(), torch.zeros(2, dtype=torch.int64))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("method", ["planted", "bitsandbytes", "nunchaku_lite", "torchao", "quanto", "gguf"])
def test_a_folder_of_diffusers_chooses_no_quantisation(unet, method):
    change(unet / "unet" / "config.json", quantization_config={"quant_method": method, "load_in_4bit": True})
    with pytest.raises(ValueError, match=r"config\.json: quantization_config must be left out, got "):
        load_unet(str(unet))


def test_a_network_of_another_class_is_not_handed_to_diffusers(unet):
    change(
        unet / "unet" / "config.json",
        _class_name="Other",
        quantization_config={"quant_method": "bitsandbytes"},
    )
    with pytest.raises(ValueError, match=r"must hold the config\.json of a UNet2DModel"):
        load_unet(str(unet))


@pytest.mark.parametrize("name", ["planted.bin", "../planted.bin", "diffusion_pytorch_model.bin"])
def test_an_index_of_diffusers_leads_to_no_pickle(unet, name):
    index = {"metadata": {"total_size": 1}, "weight_map": {"conv_in.weight": name}}
    (unet / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"must hold a UNet2DModel in safetensors"):
        load_unet(str(unet))


@pytest.mark.parametrize("rename", [False, True])
def test_a_pickle_in_the_place_of_diffusers_weights_is_refused(unet, proof, rename):
    weights = unet / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(pickle.dumps(Run(proof)))
    if rename:
        weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=r"must hold a UNet2DModel in safetensors"):
        load_unet(str(unet))


@pytest.fixture
def pipeline(tmp_path, proof):
    """A pipeline's folder in which each library finds code to run."""
    pytest.importorskip("diffusers")
    folder = tmp_path / "pipeline"
    prompt_pipeline(folder)
    code = f"open({str(proof)!r}, 'w')\nclass Planted:\n    pass\n"
    for place in (folder, *(path for path in folder.iterdir() if path.is_dir())):
        for name in (
            "planted",
            "pipeline",
            "modeling_clip",
            "tokenization_clip",
            "unet_2d_condition",
            "__init__",
        ):
            (place / f"{name}.py").write_text(code)
        for name in ("diffusion_pytorch_model.bin", "pytorch_model.bin", "planted.bin"):
            (place / name).write_bytes(pickle.dumps(Run(proof)))
        adapter = {"base_model_name_or_path": "planted/model", "peft_type": "LORA", "auto_mapping": "planted"}
        (place / "adapter_config.json").write_text(json.dumps(adapter))
    return folder


def test_a_pipeline_runs_nothing(pipeline):
    expected = load_pipeline(str(pipeline), ["a handwritten three"])
    for part in ("unet/config", "vae/config", "scheduler/scheduler_config", "model_index"):
        change(pipeline / f"{part}.json", **PLANTED)
    encoder = {
        name: value for name, value in CONFIG.items() if name not in ("architectures", "quantization_config")
    }
    change(pipeline / "text_encoder" / "config.json", **encoder)
    change(pipeline / "tokenizer" / "tokenizer_config.json", **TOKENIZER)
    change(
        pipeline / "model_index.json",
        _class_name=["planted", "Planted"],
        text_encoder=["planted", "Planted"],
        safety_checker=["planted", "Planted"],
    )
    found = load_pipeline(str(pipeline), ["a handwritten three"])
    assert torch.equal(found.condition.prompts, expected.condition.prompts)
    for name, value in expected.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_pickle_in_the_place_of_a_pipelines_weights_is_refused(pipeline, proof, part):
    (weights,) = (pipeline / part).glob("*.safetensors")
    weights.write_bytes(pickle.dumps(Run(proof)))
    with pytest.raises(ValueError, match=re.escape(str(pipeline / part))):
        load_pipeline(str(pipeline), ["a handwritten three"])
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ValueError, match=re.escape(str(pipeline / part))):
        load_pipeline(str(pipeline), ["a handwritten three"])
