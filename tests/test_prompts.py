import pytest

from genenv.prompts import prompts


def test_digits_are_named_in_words():
    assert prompts("digits")[3] == "a handwritten three"
    assert len(prompts("digits")) == 10


@pytest.mark.parametrize("backbone", ["imagenet256-maskgit-l", "random:imagenet256-dit-xl-2"])
def test_the_classes_of_imagenet_are_those_of_open_clip(backbone):
    open_clip = pytest.importorskip("open_clip")
    texts = prompts(backbone)
    assert texts == tuple(f"a photo of a {name}" for name in open_clip.IMAGENET_CLASSNAMES)
    assert len(texts) == 1000
    assert texts[1] == "a photo of a goldfish"


def test_an_unknown_backbone_has_no_prompts():
    with pytest.raises(ValueError, match="'imagenet'"):
        prompts("imagenet")
