"""The files of others: what each is, its licence, where it comes from, and the network that it fits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from torch import nn

from genenv.models.autoencoder_kl import AutoencoderKL
from genenv.models.dit import dit_xl_2
from genenv.models.llamagen import llamagen_imagenet
from genenv.models.llamagen_vq import LlamaGenVQ
from genenv.models.maskgit import MaskGITTransformer
from genenv.models.maskgit_vqgan import MaskGITVQGAN
from genenv.models.policy import PolicyBackbone
from genenv.models.projected_discriminator import dino_vit_s_16
from genenv.models.var import PATCH_NUMS_256, PATCH_NUMS_512, var_d
from genenv.models.var_vqvae import VARVQVAE
from genenv.models.vqgan import VQGAN
from genenv.models.vqgan_transformer import vqgan_imagenet


@dataclasses.dataclass(frozen=True)
class Download:
    """One file of others.

    Attributes:
        file: its name, in `genenv.checkpoints.checkpoint_folder`.
        page: where people find it.
        licence: of what it holds, as far as its authors state it.
        url: for an automatic download from anywhere but Hugging Face; None where the host wants a browser.
        repo: on Hugging Face, which holds the file at its top.
        revision: of the repository: a branch, a tag or a commit.
        sha256: how the file's hash begins, where it is published.
    """

    file: str
    page: str
    licence: str
    url: str | None = None
    repo: str | None = None
    revision: str = "main"
    sha256: str = ""


@dataclasses.dataclass(frozen=True)
class Release(Download):
    """The weights of one network.

    Attributes:
        build: makes the network without weights.
        prefix: before the names of its tensors, where the file holds those of several networks.
    """

    build: Callable[[], nn.Module] = dataclasses.field(kw_only=True)
    prefix: str = dataclasses.field(default="", kw_only=True)


def _hugging_face(
    repo: str, file: str, build: Callable[[], nn.Module], licence: str, revision: str = "main"
) -> Release:
    page = f"https://huggingface.co/{repo}"
    return Release(file, page, licence, repo=repo, revision=revision, build=build)


def _google_drive(key: str, file: str, build: Callable[[], nn.Module], licence: str) -> Release:
    return Release(file, f"https://drive.google.com/file/d/{key}/view", licence, build=build)


def _policy(name: str, feature_dim: int, num_outputs: int) -> Release:
    build = functools.partial(PolicyBackbone, feature_dim, grid_size=16, num_outputs=num_outputs)
    return _hugging_face("nzl-thu/AdaGen_Policies", f"{name}.pth", build, "MIT (AdaGen)")


VAR_COMMIT = "367386cbd701447557c18f0ba8fb3ad7d761ba75"
"""Of 19 April 2024: its history names these depths, as they were last changed, and the tokenizer."""
VAR_DEPTHS_THERE = (16, 20, 30)


def _var_file(file: str, build: Callable[[], nn.Module], revision: str) -> Release:
    return _hugging_face("FoundationVision/var", file, build, "MIT (VAR)", revision)


def _var(depth: int) -> Release:
    revision = VAR_COMMIT if depth in VAR_DEPTHS_THERE else "main"
    return _var_file(f"var_d{depth}.pth", functools.partial(var_d, depth), revision)


def _var_tokenizer(patch_nums: Sequence[int]) -> Release:
    return _var_file("vae_ch160v4096z32.pth", functools.partial(VARVQVAE, patch_nums), VAR_COMMIT)


def _llamagen(size: str, pixels: int) -> Release:
    build = functools.partial(llamagen_imagenet, size, pixels // 16)
    return _hugging_face("FoundationVision/LlamaGen", f"c2i_{size}_{pixels}.pt", build, "MIT (LlamaGen)")


def _llamagen_vq(factor: int, ch_mult: tuple[int, ...]) -> Release:
    build = functools.partial(LlamaGenVQ, ch_mult=ch_mult)
    return _hugging_face("FoundationVision/LlamaGen", f"vq_ds{factor}_c2i.pt", build, "MIT (LlamaGen)")


def _cin_transformer(prefix: str, build: Callable[[], nn.Module]) -> Release:
    return Release(
        "2021-04-03T19-39-50_cin_transformer/checkpoints/last.ckpt",
        "https://k00.fr/s511rwcv",
        "MIT (Taming Transformers)",
        build=build,
        prefix=prefix,
    )


LLAMAGEN_SIZES = (("B", 256), ("B", 384), ("L", 256), ("L", 384), ("XL", 384), ("XXL", 384), ("3B", 384))

DINO = "https://dl.fbaipublicfiles.com/dino/dino_deitsmall16_pretrain/dino_deitsmall16_pretrain.pth"

RELEASES: dict[str, Release] = {
    "dino-vit-s-16": Release(
        "dino_deitsmall16_pretrain.pth", DINO, "Apache-2.0 (DINO)", url=DINO, build=dino_vit_s_16
    ),
    "MaskGIT-L": _hugging_face(
        "nzl-thu/MaskGIT-L",
        "MaskGIT-L.pth",
        lambda: MaskGITTransformer(16, codebook_size=1024, embed_dim=768, depth=24, num_heads=8),
        "MIT (AdaGen)",
    ),
    "vqgan_jax_strongaug": _google_drive(
        "13S_unB87n6KKuuMdyMnyExW0G1kplTbP", "vqgan_jax_strongaug.ckpt", MaskGITVQGAN, "MIT (MAGE)"
    ),
    **{f"var_d{depth}": _var(depth) for depth in (16, 20, 24, 30, 36)},
    "vae_ch160v4096z32": _var_tokenizer(PATCH_NUMS_256),
    "vae_ch160v4096z32 at 512 pixels": _var_tokenizer(PATCH_NUMS_512),
    **{f"c2i_{size}_{pixels}": _llamagen(size, pixels) for size, pixels in LLAMAGEN_SIZES},
    "vq_ds16_c2i": _llamagen_vq(16, (1, 1, 2, 2, 4)),
    "vq_ds8_c2i": _llamagen_vq(8, (1, 2, 2, 4)),
    "cin_transformer": _cin_transformer("transformer.", vqgan_imagenet),
    "cin_transformer's tokenizer": _cin_transformer("first_stage_model.", VQGAN),
    "DiT-XL-2-256x256": Release(
        "DiT-XL-2-256x256.pt",
        build=dit_xl_2,
        page="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
        licence="CC BY-NC 4.0, not for commercial use (DiT)",
        url="https://dl.fbaipublicfiles.com/DiT/models/DiT-XL-2-256x256.pt",
    ),
    "SiT-XL-2-256": _hugging_face("nyu-visionx/SiT-collections", "SiT-XL-2-256.pt", dit_xl_2, "MIT (SiT)"),
    "autoencoder_kl_ema": _google_drive(
        "10nbEiFd4YCHlzfTkJjZf45YcSMCN34m6",
        "autoencoder_kl_ema.pth",
        AutoencoderKL,
        "CreativeML OpenRAIL-M (Stable Diffusion's autoencoder)",
    ),
    "maskgit_policy": _policy("maskgit_policy", 768, 4),
    "dit_policy": _policy("dit_policy", 1152, 2),
    "sit_policy": _policy("sit_policy", 1152, 2),
    "var_d16_policy": _policy("var_d16_policy", 1024, 4),
    "var_d30_policy": _policy("var_d30_policy", 1920, 4),
}
"""Checkpoint -> its release. Their sha256 are not known here, and no revisions but VAR's: the first file that loads is
recorded, and kept to."""


def _adm(pixels: int, file: str) -> Download:
    host = "https://openaipublic.blob.core.windows.net/diffusion/jul-2021/ref_batches/imagenet"
    page = "https://github.com/openai/guided-diffusion/tree/main/evaluations"
    return Download(file, page, "ImageNet's terms of access", f"{host}/{pixels}/{file}")


def _of_repository(repo: str, licence: str, *files: str) -> dict[str, Download]:
    """Returns {local name: file} of some files of a Hugging Face repository, in a folder of their own."""
    page, folder = f"https://huggingface.co/{repo}", repo.split("/")[1]
    names = [f"{folder}/{file}" for file in files]
    return {name: Download(name, page, licence, repo=repo) for name in names}


_FIDELITY = "https://github.com/toshas/torch-fidelity/releases"
_INCEPTION = "weights-inception-2015-12-05-6726825d.pth"
_TORCHVISION = "https://download.pytorch.org/models/inception_v3_google-0cc3c7bd.pth"
_HPSV2 = "https://huggingface.co/xswu/HPSv2"
CLIP_WEIGHTS = ("config.json", "model.safetensors")
CLIP_PROCESSOR = ("preprocessor_config.json", "tokenizer.json")

DOWNLOADS: dict[str, Download] = {
    **RELEASES,
    "inception-fid": Download(
        _INCEPTION,
        f"{_FIDELITY}/tag/v0.2.0",
        "Apache-2.0 (Inception of TensorFlow, by torch-fidelity)",
        f"{_FIDELITY}/download/v0.2.0/{_INCEPTION}",
        sha256="6726825d",
    ),
    "inception-torchvision": Download(
        "inception_v3_google-0cc3c7bd.pth",
        _TORCHVISION,
        "BSD-3-Clause (torchvision)",
        _TORCHVISION,
        sha256="0cc3c7bd",
    ),
    "adm-imagenet-256": _adm(256, "VIRTUAL_imagenet256_labeled.npz"),
    "adm-imagenet-512": _adm(512, "VIRTUAL_imagenet512.npz"),
    "hpsv2.1": Download("HPS_v2.1_compressed.pt", _HPSV2, "Apache-2.0 (HPSv2)", repo="xswu/HPSv2"),
    "hpsv2.0": Download("HPS_v2_compressed.pt", _HPSV2, "Apache-2.0 (HPSv2)", repo="xswu/HPSv2"),
    **_of_repository(
        "openai/clip-vit-large-patch14",
        "MIT (CLIP's repository; the card of its weights names none)",
        *CLIP_WEIGHTS,
        *CLIP_PROCESSOR,
    ),
    **_of_repository("yuvalkirstain/PickScore_v1", "MIT (PickScore)", *CLIP_WEIGHTS),
    **_of_repository("laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "MIT (OpenCLIP)", *CLIP_PROCESSOR),
}
"""Name -> file of others: the networks of `RELEASES`, those that judge, and what real images look like to them."""

BACKBONES: dict[str, dict[str, str]] = {
    "imagenet256-maskgit-l": {"maskgit": "MaskGIT-L", "vq": "vqgan_jax_strongaug"},
    **{
        f"imagenet{512 if depth == 36 else 256}-var-d{depth}": {
            "var": f"var_d{depth}",
            "msvq": "vae_ch160v4096z32" + (" at 512 pixels" if depth == 36 else ""),
        }
        for depth in (16, 20, 24, 30, 36)
    },
    **{
        f"imagenet{pixels}-llamagen-{size.lower()}": {"llamagen": f"c2i_{size}_{pixels}", "vq": "vq_ds16_c2i"}
        for size, pixels in LLAMAGEN_SIZES
    },
    "imagenet256-vqgan": {"vqgan": "cin_transformer", "vq": "cin_transformer's tokenizer"},
    "imagenet256-dit-xl-2": {"dit": "DiT-XL-2-256x256", "vae": "autoencoder_kl_ema"},
    "imagenet256-sit-xl-2": {"sit": "SiT-XL-2-256", "vae": "autoencoder_kl_ema"},
}
"""Generator -> {part: checkpoint}."""
