"""The tier of scikit-learn's handwritten digits, whose networks are shipped."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import torch

from genenv.data import digits
from genenv.metrics.classifier import ClassifierExtractor
from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.digits_msvq import DigitsMSVQ
from genenv.models.digits_vq import DigitsVQ
from genenv.models.dit import dit_digits, sit_digits
from genenv.models.llamagen import llamagen_digits
from genenv.models.maskgit import maskgit_digits
from genenv.models.var import var_digits
from genenv.models.vqgan_transformer import vqgan_digits
from genenv.rewards.clip import clip_of_folder, hpsv2_of_folder
from genenv.rewards.features import classifier_features
from genenv.tiers import Tier


def _discriminator(
    backbone: str, num_classes: int, generator: torch.Generator | None = None
) -> DigitsDiscriminator:
    return DigitsDiscriminator(num_classes=num_classes)


DIGITS = Tier(
    name="digits",
    image_shape=(1, 8, 8),
    class_names=("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    parts={
        "vq": DigitsVQ,
        "maskgit": maskgit_digits,
        "msvq": DigitsMSVQ,
        "var": var_digits,
        "llamagen": llamagen_digits,
        "vqgan": vqgan_digits,
        "dit": dit_digits,
        "sit": sit_digits,
        "discriminator": DigitsDiscriminator,
        "judge": lambda: DigitsClassifier(width=32),
        "reward_features": lambda: DigitsClassifier(width=24),
    },
    folder_parts=("clip", "hpsv2"),
    folder=Path(str(files("genenv") / "assets" / "digits")),
    licence="MIT; trained on the UCI handwritten digits, CC BY 4.0",
    schedules={
        "maskgit": {"guidance_weight": 0.0, "token_temperature": 1.2, "mask_temperature": 16.0},
        "var": {"guidance_weight": 1.0, "token_temperature": 1.3, "top_k": 64.0, "top_p": 0.999},
        "llamagen": {"guidance_weight": 0.0, "token_temperature": 1.1, "top_p": 0.98},
        "dit": {"guidance_weight": 0.0},
        "sit": {"guidance_weight": 0.0},
    },
    sigmas=(20.0, 0.02),
    prompt="a handwritten {}",
    real_images=digits,
    judges={"digits": ClassifierExtractor},
    reward_features=classifier_features,
    discriminator=_discriminator,
    scorers={"clip": clip_of_folder, "hpsv2": hpsv2_of_folder},
    default_reward="adversarial",
)
TIERS = (DIGITS,)
