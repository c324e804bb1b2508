"""Reference vectors of the projected discriminator."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from genenv.models.projected_discriminator import ClassMapping, ProjectedDiscriminator, vision_transformer
from genenv.parity.discriminator import check_adanat_disc
from genenv.parity.fixture import Fixture
from genenv.rewards.adversarial import AdversarialReward, adversarial_loss

pytest.importorskip("timm")

REFERENCE = Path(__file__).parents[3] / "shared" / "parity" / "adanat_disc"


def failures(folder):
    return [result.quantity for result in check_adanat_disc(Fixture(folder)) if not result.ok]


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the reference vectors are not beside this checkout")
def test_the_official_vectors_are_reproduced():
    found = list(check_adanat_disc(Fixture(REFERENCE)))
    assert len(found) == 27
    assert [result for result in found if not result.ok] == []


@pytest.fixture
def vectors(tmp_path):
    """A folder of vectors at other sizes than the reference's."""
    torch.manual_seed(0)
    vit = {"img_size": 20, "patch_size": 4, "embed_dim": 12, "depth": 3, "num_heads": 3}
    mapping = {"z_dim": 0, "c_dim": 7, "w_dim": 10, "num_layers": 2, "lr_multiplier": 0.1}
    model = ProjectedDiscriminator(
        vision_transformer(**vit), ClassMapping(7, 10, 2, 0.1), (0, 2), embed_dim=5
    )
    config = {
        "constructor": {"cmap_dim": 5, "vit": vit, "hooks": [0, 2], "mapping": mapping},
        "crop_offset": [3, 1],
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    model.eval()
    labels, bigbatch_labels, image = torch.arange(4), torch.arange(12) % 7, torch.rand(4, 3, 30, 30)
    features = torch.randn(3, 4, 12, 25)
    bigbatch = {i: torch.randn(12, 12, 25) for i in (0, 2)}
    with torch.no_grad():
        real, fake = model(image, labels), model(image[:, :, 3:23, 1:21], labels)
        condition = model.mapping(bigbatch_labels)
        heads = [model.heads[i](x, condition) for i, x in bigbatch.items()]
        io = {
            "labels": labels[:, None],
            "mapped": model.mapping(labels),
            "eval_logits": model.judge(list(features), labels),
            "bigbatch_labels": bigbatch_labels[:, None],
            "bigbatch_eval_logits": torch.cat(heads, dim=1),
            "image": image,
            "full_logits": real,
            "full_logits_cropped": fake,
            "reward": AdversarialReward(model)(image, labels)[:, None],
            "bce_loss": adversarial_loss(fake, real, "bce"),
            "hinge_loss": adversarial_loss(fake, real, "hinge"),
        }
        io |= {f"feat_{i}": x for i, x in enumerate(features)}
        io |= {f"bigbatch_feat_{i}": x for i, x in bigbatch.items()}
        io |= {f"dino_feat_{i}": x for i, x in enumerate(model.features(image))}
        model.train()
        for step in (1, 2):
            io[f"train_logits_{step}"] = model.judge(list(features), labels)
            io |= {
                f"train_after_{step}.{n}": x
                for n, x in model.state_dict().items()
                if n.endswith(("_u", "_v"))
            }
    save_file({name: x.contiguous().clone() for name, x in io.items()}, tmp_path / "io.safetensors")
    return tmp_path


def test_other_sizes_are_read_from_the_folder(vectors):
    assert failures(vectors) == []


@pytest.mark.parametrize(
    ("name", "quantity"),
    [
        ("mapped", "condition"),
        ("eval_logits", "logits of features"),
        ("bigbatch_eval_logits", "logits of several groups"),
        ("dino_feat_2", "features, tap 2"),
        ("full_logits", "logits of images"),
        ("full_logits_cropped", "logits of cropped images"),
        ("reward", "reward"),
        ("bce_loss", "bce loss"),
        ("hinge_loss", "hinge loss"),
        ("train_logits_2", "logits in training, pass 2"),
        ("train_after_1.heads.0.cls.weight_u", "heads.0.cls.weight_u after pass 1"),
    ],
)
def test_a_wrong_number_fails(vectors, name, quantity):
    io = load_file(vectors / "io.safetensors")
    wrong = copy.deepcopy(io[name])
    wrong.view(-1)[-1] += 0.01
    save_file(io | {name: wrong}, vectors / "io.safetensors")
    assert failures(vectors) == [quantity]


def test_weights_of_another_network_are_refused(vectors):
    state = load_file(vectors / "weights.safetensors")
    del state["heads.1.cls.weight_u"]
    save_file(state, vectors / "weights.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing key.*heads\.1\.cls\.weight_u"):
        failures(vectors)
