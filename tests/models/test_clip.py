import json
import re

import pytest
import torch
import torch.nn.functional as F

from genenv.models.clip import CLIP, Tokenizer, from_open_clip, from_transformers

transformers = pytest.importorskip("transformers")
open_clip = pytest.importorskip("open_clip")

from genenv.zoo.scorers import write_tokenizer  # noqa: E402

SIZE, MEAN, STD = 12, (0.5, 0.4, 0.3), (0.3, 0.2, 0.25)
TEXTS = ["a handwritten three", "the digit 7", "three"]


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """The folder of a tokenizer, and transformers' reading of it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, write_tokenizer(folder)


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return vocabulary[1]


@pytest.fixture(scope="module")
def of_transformers(vocabulary):
    folder, tokenizer = vocabulary
    torch.manual_seed(0)
    tower = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = transformers.CLIPConfig(
        text_config={**tower, **tokens, "vocab_size": len(tokenizer), "max_position_embeddings": 9},
        vision_config={**tower, "image_size": SIZE, "patch_size": 4},
        projection_dim=8,
    )
    network = transformers.CLIPModel(config).eval().requires_grad_(False)
    return from_transformers(network, Tokenizer(folder / "tokenizer.json", 9, full=False), MEAN, STD)


@pytest.fixture(scope="module")
def of_open_clip():
    torch.manual_seed(0)
    network = open_clip.CLIP(
        embed_dim=8,
        vision_cfg={"image_size": SIZE, "patch_size": 4, "width": 16, "head_width": 8, "layers": 2},
        text_cfg={"width": 16, "heads": 2, "layers": 2},
    )
    network = network.eval().requires_grad_(False)
    return from_open_clip(network, open_clip.SimpleTokenizer(), MEAN, STD)


@pytest.fixture(params=["of_transformers", "of_open_clip"])
def clip(request) -> CLIP:
    return request.getfixturevalue(request.param)


def images(number=5, channels=3, height=SIZE, width=SIZE):
    return torch.rand(number, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_cosines_are_those_of_transformers(of_transformers, tokenizer):
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = of_transformers.preprocess(images())
    expected = of_transformers.network(pixel_values=pixels, **tokens).logits_per_image
    cosines = of_transformers.encode_images(images()) @ of_transformers.encode_texts(TEXTS).T
    torch.testing.assert_close(of_transformers.logit_scale * cosines, expected)


@pytest.mark.parametrize("padding", ["<|endoftext|>", "!"])
def test_a_vocabulary_and_merges_alone_are_read_as_transformers_does(vocabulary, tmp_path, padding):
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((vocabulary[0] / name).read_bytes())
    texts = [
        *TEXTS,
        "",
        "four! <|ENDOFTEXT|>",
        "A Three's  one\n4two, caf\u00e9!? <|endoftext|> x",
        "three " * 20,
    ]
    own = Tokenizer(tmp_path, 9, full=True, padding=padding)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path, pad_token=padding)
    expected = theirs(texts, padding="max_length", max_length=9, truncation=True, return_tensors="pt")
    tokens, mask = own(texts)
    assert torch.equal(tokens, expected["input_ids"])
    assert torch.equal(mask, expected["attention_mask"])


@pytest.mark.parametrize("token", ["<|startoftext|>", "<|endoftext|>"])
def test_a_vocabulary_of_another_model_is_refused(vocabulary, tmp_path, token):
    for name in ("vocab.json", "merges.txt"):
        text = (vocabulary[0] / name).read_text().replace(token, "<other>")
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"has no {re.escape(repr(token))}, it is not of a CLIP"):
        Tokenizer(tmp_path, 9, full=True)


def test_cosines_are_those_of_open_clip(of_open_clip):
    tokens = open_clip.SimpleTokenizer()(TEXTS)
    expected, _ = of_open_clip.network.get_logits(of_open_clip.preprocess(images()), tokens)
    cosines = of_open_clip.encode_images(images()) @ of_open_clip.encode_texts(TEXTS).T
    torch.testing.assert_close(of_open_clip.logit_scale * cosines, expected)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_the_bare_tensors_of_transformers_4_are_read(of_transformers, monkeypatch, kind):
    encode, inputs = {
        "image": (of_transformers.encode_images, images()),
        "text": (of_transformers.encode_texts, TEXTS),
    }[kind]
    expected = encode(inputs)
    method = f"get_{kind}_features"
    current = getattr(of_transformers.network, method)
    monkeypatch.setattr(of_transformers.network, method, lambda **kw: current(**kw).pooler_output)
    assert torch.equal(encode(inputs), expected)


def test_embeddings_are_unit_vectors_of_float32(clip):
    for vectors in (clip.encode_images(images()), clip.encode_texts(TEXTS)):
        assert vectors.dtype == torch.float32
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(len(vectors)))


def test_the_size_of_a_chunk_changes_nothing(clip, monkeypatch):
    expected = clip.encode_images(images()), clip.encode_texts(TEXTS)
    monkeypatch.setattr(clip, "chunk_size", 2)
    torch.testing.assert_close((clip.encode_images(images()), clip.encode_texts(TEXTS)), expected)


def test_padding_changes_no_text(clip):
    torch.testing.assert_close(clip.encode_texts(TEXTS)[2:], clip.encode_texts(TEXTS[2:]))


def test_a_text_that_is_too_long_is_cut(clip):
    assert clip.encode_texts(["seven " * 200]).isfinite().all()


def test_a_network_in_bfloat16_stays_close(of_open_clip):
    expected = of_open_clip.encode_images(images())
    try:
        of_open_clip.network.bfloat16()
        found = of_open_clip.encode_images(images())
    finally:
        of_open_clip.network.float()
    assert found.dtype == torch.float32
    assert F.cosine_similarity(found, expected).min() > 0.99


@pytest.mark.parametrize(("height", "width"), [(12, 12), (8, 8), (30, 30), (24, 37), (50, 20), (SIZE, 20)])
def test_preprocessing_is_that_of_transformers(of_transformers, height, width):
    processor = transformers.CLIPImageProcessor(
        size={"shortest_edge": SIZE},
        crop_size={"height": SIZE, "width": SIZE},
        image_mean=MEAN,
        image_std=STD,
    )
    # Away from black and white, where the reference clips between the two directions.
    pixels = (images(2, 3, height, width) * 128 + 64).round().to(torch.uint8)
    expected = processor(images=list(pixels), return_tensors="pt").pixel_values
    found = of_transformers.preprocess(pixels / 255)
    # The reference rounds to whole levels after each direction.
    torch.testing.assert_close(found, expected, rtol=0, atol=2 / 255 / min(STD))


def test_a_grey_image_is_one_of_three_equal_channels(clip):
    grey = images(channels=1, height=8, width=8)
    assert torch.equal(clip.encode_images(grey), clip.encode_images(grey.repeat(1, 3, 1, 1)))


def test_another_number_of_channels_is_refused(clip):
    with pytest.raises(ValueError, match=r"1 or 3 channels, got shape \(5, 4, 12, 12\)"):
        clip.encode_images(images(channels=4))


def test_tokens_end_with_the_highest_number(tokenizer):
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert json.loads(tokenizer.backend_tokenizer.to_str())["model"]["end_of_word_suffix"] == "</w>"
