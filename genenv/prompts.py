"""The text of each class, for scorers that compare images with texts."""

from __future__ import annotations

from genenv.tiers import tier_of


def prompts(backbone: str) -> tuple[str, ...]:
    """Returns the prompt of every class label of a backbone, by the template of its tier.

    Digits are "a handwritten three", ImageNet's classes "a photo of a tench". Generators of these backbones never saw a
    text: a CLIP score of theirs depends on this template, and means nothing without it. Scores under another template,
    or of text-to-image models, cannot be compared.

    Raises:
        ValueError: if there is no such backbone, or its tier has no template.
    """
    return tier_of(backbone).prompts()
