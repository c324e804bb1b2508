"""The text of each class, for scorers that compare images with texts."""

from __future__ import annotations

from genenv.checkpoints import backbone_folder, is_released

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def prompts(backbone: str) -> tuple[str, ...]:
    """Returns the prompt of every class label of a backbone.

    Digits are "a handwritten three", ImageNet's classes "a photo of a tench", with open_clip's curated class names.
    Generators of these backbones never saw a text: a CLIP score of theirs depends on this template, and means nothing
    without it. Scores under another template, or of text-to-image models, cannot be compared.

    Raises:
        ValueError: if there is no such backbone.
        ImportError: without open_clip, for ImageNet.
    """
    if not is_released(backbone):
        backbone_folder(backbone)
        return tuple(f"a handwritten {name}" for name in DIGIT_NAMES)
    try:
        from open_clip import IMAGENET_CLASSNAMES
    except ImportError:
        raise ImportError("ImageNet's class names need open_clip: pip install 'genenv[scorers]'") from None
    return tuple(f"a photo of a {name}" for name in IMAGENET_CLASSNAMES)
