"""What belongs to a tier of generators, and where its networks lie.

A tier is what its backbones have in common: the size of the images, what the labels mean, the real images, the judge.
A backbone is one set of weights: a folder that says in its manifest of which tier it is, or released checkpoints.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from genenv import data
from genenv.checkpoints import (
    MANIFEST,
    ZOO_REMEDY,
    CheckpointError,
    load_release,
    load_state,
    load_tensors,
    read_json,
    sha256,
    write_text,
)
from genenv.models.clip import CLIP
from genenv.protocols import Reward
from genenv.releases import RELEASES

RANDOM = "random:"
"""Before the name of a released backbone: its networks with random weights, to measure speed without a download."""
PUBLISHED = "published"
"""The hand-crafted schedule of a paradigm's paper, where a tier has one of its own."""
BUILT_IN = (
    "genenv.tiers.digits",
    "genenv.tiers.imagenet",
    "genenv.tiers.gaussian_mixture",
    "genenv.tiers.diffusers",
)
"""Modules whose `TIERS` are known from the start. Where there is a `recognise`, (backbone) -> tier or None, it knows
backbones that have no manifest and no name of their own."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Real images in numbers.

    Attributes:
        mean, covariance: (D,) and (D, D) float64, of their features.
        sha256: of the file that says so.
    """

    mean: Tensor
    covariance: Tensor
    sha256: str


class Extractor(Protocol):
    """Turns images into features and class logits, and knows what real images give.

    Attributes:
        protocol: how it does so; numbers of different protocols cannot be compared.
        sha256: of its weights.
        reference: moments of the real images' features.
        dtype: of the generated features' moments.
        labelled: whether the logits are those of the labels, so that there is an accuracy.
        num_classes: of the logits.
        device: where features and logits are.
    """

    protocol: str
    sha256: str
    reference: Reference
    dtype: torch.dtype
    labelled: bool
    num_classes: int
    device: torch.device

    @functools.cached_property
    def real(self) -> Tensor | None:
        """The features (M, D) of real images, None where there are none."""
        ...

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns features (N, D) and logits (N, num_classes) of images (N, C, H, W) in [0, 1]."""
        ...


class FeatureExtractor(Protocol):
    """Gives features of images."""

    def features(self, images: Tensor) -> Tensor:
        """Returns (N, D) of images (N, C, H, W) in [0, 1]."""
        ...


Labelled = tuple[Tensor, Tensor]
"""Images (M, C, H, W) in [0, 1] and their labels (M,)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tier:
    """What a tier's generators have in common. All but the first three may be left out; what needs them then says so.

    Attributes:
        name: of the tier.
        image_shape: (C, H, W).
        class_names: what each label shows, in words.
        parts: {name: builder} of the networks of a folder, each in `<name>.safetensors`.
        folder_parts: names of networks in a folder of their own, in the format of another library.
        folder: of the backbone that is called like the tier.
        released: {backbone: {part: key of `genenv.releases.RELEASES`}}.
        licence: of the weights in the folder.
        schedules: {part: settings of the hand-crafted schedule under which a network samples here, as keyword arguments
            of its id}, where those that were published for other images are not the best by hand; see
            `schedule_settings`.
        sigmas: the noise level that a clock starts from, and the least that its network is asked about; by default
            EDM's (Karras et al. 2022, tab. 1).
        prompt: the text of a class, such as "a photo of a {}".
        real_images: gives the real images and their labels.
        judges: {protocol: (backbone, device) -> extractor}, the first being the usual one: see
            `genenv.metrics.judge.Judge`.
        reward_features: (backbone, device) -> features that rewards may use, and their mean (D,) and covariance (D, D)
            over the real images.
        discriminator: (backbone, number of labels, generator) -> an untrained one, called as (images, labels).
        scorers: {reward: backbone -> network that compares an image with its class's prompt}.
        rewards: {name: (backbone, device) -> reward} of its own, beside those of `genenv.rewards`.
        default_reward: what reward="default" stands for.
    """

    name: str
    image_shape: tuple[int, int, int]
    class_names: Sequence[str]
    parts: Mapping[str, Callable[[], nn.Module]] = dataclasses.field(default_factory=dict)
    folder_parts: Sequence[str] = ()
    folder: Path | None = None
    released: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)
    licence: str = "unknown"
    schedules: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    sigmas: tuple[float, float] = (80.0, 0.002)
    prompt: str | None = None
    real_images: Callable[[], Labelled] | None = None
    judges: Mapping[str, Callable[[str, torch.device], Extractor]] = dataclasses.field(default_factory=dict)
    reward_features: Callable[[str, str], tuple[FeatureExtractor, Tensor, Tensor]] | None = None
    discriminator: Callable[[str, int, torch.Generator | None], nn.Module] | None = None
    scorers: Mapping[str, Callable[[str], CLIP]] = dataclasses.field(default_factory=dict)
    rewards: Mapping[str, Callable[[str, str], Reward]] = dataclasses.field(default_factory=dict)
    default_reward: str = "none"

    @property
    def backbones(self) -> tuple[str, ...]:
        """Names of its generators that need no folder of the user's."""
        return (*([] if self.folder is None else [self.name]), *self.released)

    def need(self, what: str) -> Any:
        """Returns an attribute that may be left out, or raises a ValueError that says what is missing."""
        value = getattr(self, what)
        if not value:
            raise ValueError(f"tier {self.name!r} has no {ABSENT[what]}: Tier({what}=...) gives it one")
        return value

    def prompts(self) -> tuple[str, ...]:
        """Returns the text of every class."""
        return tuple(self.need("prompt").format(name) for name in self.class_names)

    def real_like(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Returns one random real image (N, C, H, W) of each label (N,), on the labels' device."""
        return data.real_like(self.need("real_images")(), labels, generator)


ABSENT = {
    "prompt": "prompt for its classes",
    "real_images": "real images",
    "judges": "judge",
    "reward_features": "features for rewards",
    "discriminator": "discriminator",
    "scorers": "scorer of prompts",
}
"""Attribute of a tier that may be left out -> what it is called in an error."""

_TIERS: dict[str, Tier] = {}


def register_tier(tier: Tier) -> None:
    """Makes a tier known, so that `backbone=` takes its names, and every folder whose manifest names it.

    A module that brings a tier calls it when it is imported; calling it again replaces the tier.

    Raises:
        ValueError: if the name of the tier or of one of its backbones is another tier's, or a built-in one's.
    """
    _register_built_in()
    taken = {name: other.name for other in _TIERS.values() for name in (other.name, *other.backbones)}
    own = {tier.name} - set(_register_built_in())
    for name in (tier.name, *tier.backbones):
        if taken.get(name, tier.name) not in own:
            raise ValueError(f"{name!r} is a name of the tier {taken[name]!r} already; choose another")
    _TIERS[tier.name] = tier


def tiers() -> dict[str, Tier]:
    """Returns {name: tier} of all that are known, the built-in ones first."""
    _register_built_in()
    return dict(_TIERS)


@functools.cache
def _register_built_in() -> tuple[str, ...]:
    """Registers the tiers that come with the package, at the first call, and returns their names."""
    found = [tier for module in BUILT_IN for tier in importlib.import_module(module).TIERS]
    _TIERS.update({tier.name: tier for tier in found})
    return tuple(tier.name for tier in found)


def tier_of(backbone: str) -> Tier:
    """Returns the tier of a backbone: a name that `genenv list` shows, or a folder with a manifest.

    Raises:
        ValueError: if there is no such backbone, or its tier is not registered.
        CheckpointError: if the folder has no manifest, or a damaged one.
    """
    known = tiers()
    for tier in known.values():
        if backbone in tier.backbones or (
            backbone.startswith(RANDOM) and backbone.removeprefix(RANDOM) in tier.released
        ):
            return tier
    recognisers = (getattr(importlib.import_module(module), "recognise", None) for module in BUILT_IN)
    for recognise in filter(None, recognisers):
        tier = recognise(backbone)
        if tier is not None:
            return tier
    if os.sep not in backbone and not Path(backbone).is_dir():
        raise ValueError(
            f"backbone must be {', '.join(map(repr, _folder_names(known)))}, another name that `genenv list` shows, "
            f"or a folder of the zoo, got {backbone!r}"
        )
    folder = Path(backbone).expanduser()
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"backbone {backbone!r} is not a folder with a {MANIFEST}; make one with "
            f"`genenv zoo build digits --out {backbone}`, or with genenv.tiers.write_manifest"
        )
    name = _tier_name(folder)
    if name not in known:
        raise ValueError(
            f"{folder / MANIFEST} names the tier {name!r}, but there are {', '.join(known)}: import the module "
            "that registers it"
        )
    return known[name]


def _folder_names(known: Mapping[str, Tier]) -> list[str]:
    return [tier.name for tier in known.values() if tier.folder is not None]


def _tier_name(folder: Path) -> str:
    """Returns the tier that a folder's manifest names, "digits" where it names none."""
    name = read_json(folder / MANIFEST).get("tier", "digits")
    if not isinstance(name, str):
        raise CheckpointError(f"{folder / MANIFEST}: tier must be a name, got {name!r}; {ZOO_REMEDY}")
    return name


def base_of(backbone: str) -> str | None:
    """Returns the named backbone that the user's folder takes what it lacks from, None where it is whole.

    Raises:
        CheckpointError: if its manifest names anything else.
    """
    tier, manifest = tier_of(backbone), Path(backbone).expanduser() / MANIFEST
    if backbone in tier.backbones or not manifest.is_file():
        return None
    base = read_json(manifest).get("base")
    if base is not None and not _is_named(base, tier):
        raise CheckpointError(f"{manifest}: base must be {_names(tier)}, got {base!r}")
    return base


def _is_named(backbone: Any, tier: Tier) -> bool:
    return isinstance(backbone, str) and backbone.removeprefix(RANDOM) in tier.backbones


def _names(tier: Tier) -> str:
    return " or ".join(map(repr, tier.backbones)) or f"left out, as {tier.name!r} has no backbone with a name"


def backbone_folder(backbone: str) -> Path:
    """Returns the folder of a backbone's networks: one that comes with its tier, or the user's own.

    Raises:
        ValueError: if there is no such backbone, or it is a released one.
    """
    tier = tier_of(backbone)
    if backbone == tier.name and tier.folder is not None:
        return tier.folder
    if backbone.removeprefix(RANDOM) in tier.released:
        raise ValueError(f"backbone {backbone!r} consists of released files and has no folder of its own")
    return Path(backbone).expanduser()


def folder_with(name: str, backbone: str) -> Path:
    """Returns the folder that a file, or a folder of files, of a backbone is in: its own, or its base's.

    Raises:
        ValueError: if there is no such backbone, or what it is in is released.
    """
    folder, base = backbone_folder(backbone), base_of(backbone)
    return folder if base is None or (folder / name).exists() else backbone_folder(base)


def parts_of(backbone: str) -> tuple[str, ...]:
    """Returns the names of a backbone's networks."""
    tier = tier_of(backbone)
    return tuple(tier.released.get((base_of(backbone) or backbone).removeprefix(RANDOM), tier.parts))


def backbones_with(parts: Sequence[str]) -> list[str]:
    """Returns the named backbones that have all these parts."""
    names = [name for tier in tiers().values() for name in tier.backbones]
    return [name for name in names if set(parts) <= set(parts_of(name))]


def backbones_with_any(parts: Collection[str]) -> list[str]:
    """Returns the named backbones that have one of these parts, those of the first part first."""
    return list(dict.fromkeys(name for part in parts for name in backbones_with((part,))))


def choose_part(backbone: str, given: str | None, parts: Collection[str], what: str) -> str:
    """Returns which of several parts is a backbone's network: the one that is given, else the first that it has.

    Args:
        backbone: a backbone's name or folder.
        given: the value of the keyword argument `network`.
        parts: names of what there is to choose from, the preferred one first.
        what: they are, for errors.

    Raises:
        ValueError: if the backbone has none of them, or not the one that is given.
    """
    known = [part for part in parts if part in parts_of(backbone)]
    if not known or given not in (None, *known):
        has = f"has {' and '.join(known)}" if known else f"has no {what}"
        raise ValueError(f"network must be one of {', '.join(parts)}, got {given!r}; {backbone!r} {has}")
    return given or known[0]


def schedule_settings(backbone: str, part: str, schedule: str | None, **given: Any) -> dict[str, Any]:
    """Returns the settings of a hand-crafted schedule; None for one whose value is that of the paper.

    Args:
        backbone: a backbone's name or folder.
        part: the network that samples.
        schedule: None for the tier's own where it has one; "published" for that of the paper.
        given: values of the user, which stand; None leaves the choice to the schedule.

    Raises:
        ValueError: if there is no such schedule.
    """
    if schedule not in (None, PUBLISHED):
        raise ValueError(f"schedule must be {PUBLISHED!r}, or None for the tier's own, got {schedule!r}")
    own = tier_of(backbone).schedules.get(part, {}) if schedule is None else {}
    return {name: own.get(name) if value is None else value for name, value in given.items()}


def licences(backbone: str) -> dict[str, str]:
    """Returns {file: licence} of a backbone's weights, or of its base's, which they are made of."""
    tier = tier_of(backbone)
    released = tier.released.get((base_of(backbone) or backbone).removeprefix(RANDOM))
    if released is None:
        return {", ".join(["*.safetensors", *tier.folder_parts]): tier.licence}
    return {RELEASES[name].file: RELEASES[name].licence for name in released.values()}


def load_part(part: str, backbone: str, trainable: bool = False) -> Any:
    """Returns a network of a backbone, in eval mode.

    A frozen one needs no gradients and no reparametrisation: spectral norms are folded into the weights, which keep
    their values. A trainable one keeps both. It is in eval mode too, without dropout, so that what it says of a sample
    while learning is what it said while sampling; `.train()` turns dropout on.

    Args:
        part: the network's name, such as "maskgit", "vq" or "judge".
        backbone: a backbone's name, or a folder with a manifest.
        trainable: whether its parameters require gradients.

    Raises:
        ValueError: if there is no such backbone, or it has no such part.
        CheckpointError: if its file is missing, damaged or another one.
    """
    tier, known = tier_of(backbone), parts_of(backbone)
    if part not in known:
        raise ValueError(
            f"backbone {backbone!r} of the tier {tier.name!r} has no {part!r}; it has {', '.join(known) or 'none'}"
        )
    base = base_of(backbone)
    released = tier.released.get((base or backbone).removeprefix(RANDOM))
    path = Path(backbone).expanduser() / f"{part}.safetensors"
    if base is not None and not path.is_file():
        return load_part(part, base, trainable)
    if released is None or base is not None:
        model = tier.parts[part]() if released is None else RELEASES[released[part]].build()
        path = backbone_folder(backbone) / path.name
        load_state(model, load_tensors(path), path)
    elif backbone.startswith(RANDOM):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = RELEASES[released[part]].build()
    else:
        model = load_release(released[part])
    model.eval().requires_grad_(trainable)
    return model if trainable else without_parametrisations(model)


@torch.no_grad()
def without_parametrisations(model: nn.Module) -> nn.Module:
    """Returns the network, changed in place, with plain weights of the values that its parametrisations give.

    Such a network can be pickled, and judges without the threads that a norm in a forked process would wait for.
    """
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(getattr(module, "parametrizations", {})):
                parametrize.remove_parametrizations(module, name, leave_parametrized=True)
    return model.requires_grad_(False)


def checked_folder(backbone: str, part: str) -> Path:
    """Returns the folder of a part that another library reads, after comparing it with the backbone's manifest.

    Raises:
        CheckpointError: if a file is missing, damaged or not in the manifest.
    """
    folder = folder_with(part, backbone)
    known = read_json(folder / MANIFEST)
    expected = {name: digest for name, digest in known.items() if name.startswith(f"{part}/")}
    if not expected:
        raise CheckpointError(f"{folder / part} is not in {folder / MANIFEST}; {ZOO_REMEDY}")
    for name, path in _files(folder / part, folder):
        if expected.get(name) != sha256(path):
            raise CheckpointError(f"{path} is not the file that {folder / MANIFEST} names; {ZOO_REMEDY}")
        del expected[name]
    if expected:
        raise CheckpointError(f"{folder / next(iter(expected))} is missing; {ZOO_REMEDY}")
    return folder / part


def _files(folder: Path, root: Path) -> list[tuple[str, Path]]:
    """Returns (name, path) of every file below a folder, named from `root`."""
    return [(p.relative_to(root).as_posix(), p) for p in sorted(folder.rglob("*")) if p.is_file()]


def write_manifest(folder: Path, tier: str = "digits", base: str | None = None) -> None:
    """Records a folder's tier, and the sha256 of its weight files and of every file in its `Tier.folder_parts`.

    Args:
        folder: holds them.
        tier: its name.
        base: named backbone of the tier whose networks stand in for those that the folder lacks.

    Raises:
        ValueError: if there is no such tier or base, or the folder is another's.
    """
    known = tiers()
    if tier not in known:
        raise ValueError(f"tier must be one of {', '.join(known)}, got {tier!r}")
    if (folder / MANIFEST).is_file() and _tier_name(folder) != tier:
        raise ValueError(f"{folder} holds networks of the tier {_tier_name(folder)!r}, not of {tier!r}")
    if base is not None and not _is_named(base, known[tier]):
        raise ValueError(f"base must be {_names(known[tier])}, got {base!r}")
    weights = [(p.name, p) for p in sorted(folder.glob("*.safetensors"))]
    inner = [pair for part in known[tier].folder_parts for pair in _files(folder / part, folder)]
    hashes = {name: sha256(path) for name, path in weights + inner}
    head = {"tier": tier} | ({} if base is None else {"base": base})
    write_text(folder / MANIFEST, json.dumps(head | hashes, indent=2) + "\n")
