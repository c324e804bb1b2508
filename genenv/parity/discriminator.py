"""Reference vectors of AdaNAT's projected discriminator: its heads on given features, and the whole path of images."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from genenv.models.projected_discriminator import ClassMapping, ProjectedDiscriminator, vision_transformer
from genenv.parity.fixture import Fixture, Result, close
from genenv.rewards.adversarial import AdversarialReward, adversarial_loss


def discriminator(fixture: Fixture) -> ProjectedDiscriminator:
    """Returns the reference's discriminator in eval mode."""
    shape = fixture.config["constructor"]
    mapping = shape["mapping"]
    model = ProjectedDiscriminator(
        vision_transformer(**shape["vit"]),
        ClassMapping(mapping["c_dim"], mapping["w_dim"], mapping["num_layers"], mapping["lr_multiplier"]),
        taps=shape["hooks"],
        embed_dim=shape["cmap_dim"],
    )
    model.load_state_dict(fixture.state_dict)
    return model.eval()


@torch.no_grad()
def check_adanat_disc(fixture: Fixture) -> Iterator[Result]:
    """The heads in eval and training mode with their spectral norms, the features, the reward and both losses."""
    model, io = discriminator(fixture), fixture.tensors("io")
    fixture.ignore("constructor.p_crop", "constructor.data_transform")  # images come cropped, or are not
    yield from fixture.expect(
        {
            "constructor.cin": True,
            "constructor.c_dim": fixture.config["constructor"]["mapping"]["w_dim"],
            "constructor.mapping.z_dim": 0,
        }
    )
    labels, num_taps = io["labels"].flatten(), len(model.heads)
    features = [io[f"feat_{i}"] for i in range(num_taps)]
    yield close("condition", model.mapping(labels), io["mapped"])
    yield close("logits of features", model.judge(features, labels), io["eval_logits"])

    condition = model.mapping(io["bigbatch_labels"].flatten())
    groups = {i: f"bigbatch_feat_{i}" for i in range(num_taps) if f"bigbatch_feat_{i}" in io}
    logits = torch.cat([model.heads[i](io[name], condition) for i, name in groups.items()], dim=1)
    yield close("logits of several groups", logits, io["bigbatch_eval_logits"])

    images = io["image"]
    (top, left), side = fixture.config["crop_offset"], model.dino.image_size
    cropped = images[:, :, top : top + side, left : left + side]
    for i, tap in enumerate(model.features(images)):
        yield close(f"features, tap {i}", tap, io[f"dino_feat_{i}"])
    real, fake = model(images, labels), model(cropped, labels)
    yield close("logits of images", real, io["full_logits"])
    yield close("logits of cropped images", fake, io["full_logits_cropped"])
    yield close("reward", AdversarialReward(model)(images, labels)[:, None], io["reward"])
    yield close("bce loss", adversarial_loss(fake, real, "bce"), io["bce_loss"])
    yield close("hinge loss", adversarial_loss(fake, real, "hinge"), io["hinge_loss"])

    model.train()
    for step in (1, 2):
        yield close(
            f"logits in training, pass {step}", model.judge(features, labels), io[f"train_logits_{step}"]
        )
        state, prefix = model.state_dict(), f"train_after_{step}."
        for name in sorted(io):
            if name.startswith(prefix):
                key = name.removeprefix(prefix)
                yield close(f"{key} after pass {step}", state[key], io[name])
