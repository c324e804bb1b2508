import gymnasium as gym
import pytest
import torch

from genenv.data import digits
from genenv.models.digits_classifier import DigitsClassifier
from genenv.models.digits_discriminator import DigitsDiscriminator
from genenv.models.digits_vq import DigitsVQ
from genenv.models.maskgit import maskgit_digits
from genenv.rollout import generate, static_actor
from genenv.tiers import backbone_folder, load_part
from genenv.tiers.digits import DIGITS
from genenv.zoo.digits import split


@pytest.fixture(scope="module")
def tokenizer():
    return load_part("vq", "digits")


@pytest.fixture(scope="module")
def transformer():
    return load_part("maskgit", "digits")


@torch.no_grad()
def test_the_tokenizer_turns_images_into_codes_and_back():
    torch.manual_seed(0)
    model = DigitsVQ(width=8, code_dim=4, codebook_size=20)
    tokens = model.encode(torch.rand(3, 1, 8, 8))
    assert tokens.shape == (3, 4, 4)
    assert tokens.dtype == torch.int64
    assert tokens.min() >= 0
    assert tokens.max() < 20
    images = model.decode(torch.randint(20, (5, 4, 4)))
    assert images.shape == (5, 1, 8, 8)
    assert images.min() >= 0
    assert images.max() <= 1


def test_the_nearest_code_is_found_by_looking_at_all():
    torch.manual_seed(0)
    model = DigitsVQ(width=8, code_dim=4, codebook_size=20)
    latents = torch.randn(2, 4, 4, 4)
    expected = (latents[..., None, :] - model.codebook).square().sum(-1).argmin(-1)
    assert torch.equal(model.nearest(latents), expected)
    assert torch.equal(model.nearest(model.codebook), torch.arange(20))


@torch.no_grad()
def test_encoding_what_was_decoded_gives_the_image_again(tokenizer):
    rebuilt = tokenizer.decode(tokenizer.encode(digits()[0][:300]))
    again = tokenizer.decode(tokenizer.encode(rebuilt))
    assert 4 * (again - rebuilt).square().mean() <= 0.006


@torch.no_grad()
def test_the_shipped_tokenizer_keeps_the_limits_of_its_card(tokenizer):
    images, _ = digits()
    tokens = tokenizer.encode(images)
    assert 4 * (tokenizer.decode(tokens) - images).square().mean() <= 0.006  # pixels in [-1, 1]
    assert tokens.unique().numel() == tokenizer.codebook_size == 128


@torch.no_grad()
def test_the_transformer_gives_logits_and_features_of_every_place():
    torch.manual_seed(0)
    model = maskgit_digits().eval()
    logits, features = model(
        torch.full((3, 16), model.codebook_size), torch.tensor([0, 9, model.num_classes])
    )
    assert logits.shape == (3, 16, 128)  # the mask token itself cannot be predicted
    assert features.shape == (3, 16, model.embed_dim)


@torch.no_grad()
def test_the_transformer_tells_classes_and_their_absence_apart(transformer):
    tokens = torch.full((11, 16), transformer.codebook_size)
    logits, _ = transformer(tokens, torch.arange(11))
    distances = torch.cdist(logits.flatten(1), logits.flatten(1))
    assert (distances + torch.eye(11)).min() > 0.5
    with pytest.raises(IndexError):
        transformer(tokens[:1], torch.tensor([11]))


@torch.no_grad()
def test_the_transformer_treats_its_rows_alone(transformer):
    tokens = torch.randint(129, (6, 16), generator=torch.Generator().manual_seed(0))
    labels = torch.arange(6)
    together, _ = transformer(tokens, labels)
    alone = torch.cat([transformer(tokens[i : i + 1], labels[i : i + 1])[0] for i in range(6)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)  # sums of another order


def test_the_samples_of_the_hand_crafted_schedule_show_their_labels():
    env = gym.make_vec(
        "AdaGen/MaskGIT-v0", num_envs=200, contexts="cycle", reward="none", autoreset_mode="Disabled"
    )
    episode = generate(env, static_actor(env), 200, seed=10**6)
    predicted = load_part("judge", "digits")(episode.images).argmax(1)
    assert (predicted == episode.context).float().mean() >= 0.95


@torch.no_grad()
def test_the_classifier_reads_its_logits_off_its_features():
    torch.manual_seed(0)
    model = DigitsClassifier(width=4, feature_dim=12).eval()
    images = torch.rand(5, 1, 8, 8)
    assert model.features(images).shape == (5, 12)
    assert model(images).shape == (5, 10)
    torch.testing.assert_close(model(images), model.head(model.features(images)))


@pytest.mark.parametrize("name", ["judge", "reward_features"])
def test_the_shipped_classifiers_read_digits_that_they_have_not_seen(name):
    images, labels = digits()
    _, test = split()
    right = load_part(name, "digits")(images[test]).argmax(1) == labels[test]
    assert len(test) == 360
    assert right.float().mean() >= 0.97


@torch.no_grad()
def test_the_discriminator_judges_every_place_of_every_depth():
    torch.manual_seed(0)
    logits = DigitsDiscriminator(width=8).eval()(torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 9]))
    assert logits.shape == (3, 64 + 16 + 4)


@pytest.mark.parametrize("part", [*DIGITS.parts, "reference"])
def test_the_shipped_files_are_small(part):
    size = (backbone_folder("digits") / f"{part}.safetensors").stat().st_size
    assert 0 < size < 4_000_000
