import json
from pathlib import Path

import pytest
import torch

from genenv.models.dit import DiT, dit_digits, dit_xl_2, position_embedding, sit_digits
from genenv.models.transformer import sinusoids
from genenv.solvers import per_image

SHAPES = Path(__file__).parents[3] / "shared" / "parity" / "real_state_dict_shapes"


def small(**kwargs):
    """Returns a network whose zero layers are filled, so that everything has an effect."""
    torch.manual_seed(0)
    arguments = {
        "input_size": 8,
        "patch_size": 2,
        "in_channels": 3,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
    }
    model = DiT(**{**arguments, "num_classes": 5, "mlp_ratio": 2.0, **kwargs})
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def inputs(batch=4):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 3, 8, 8, generator=generator)
    return x, torch.linspace(0.1, 0.9, batch), torch.arange(batch)


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_the_output_has_the_shape_of_the_latents_and_the_features_one_row_a_patch(learn_sigma):
    output, features = small(learn_sigma=learn_sigma)(*inputs())
    assert output.shape == (4, 3, 8, 8)
    assert features.shape == (4, 16, 16)


def test_an_image_does_not_see_its_neighbours():
    model, (x, t, labels) = small(), inputs()
    output, features = model(x, t, labels)
    for i in range(len(x)):
        alone, own = model(x[i : i + 1], t[i : i + 1], labels[i : i + 1])
        torch.testing.assert_close(alone[0], output[i])
        torch.testing.assert_close(own[0], features[i])


def test_time_and_class_matter_and_the_null_class_is_one_of_its_own():
    model, (x, t, _) = small(), inputs(1)
    by_label = [model(x, t, torch.tensor([label]))[0] for label in range(6)]
    assert len({round(output.sum().item(), 5) for output in by_label}) == 6
    assert not torch.allclose(model(x, t + 0.3, torch.tensor([0]))[0], by_label[0])


def test_tokens_know_their_place():
    model, (x, t, labels) = small(), inputs()
    shifted = model(x.roll(2, dims=3), t, labels)[0].roll(-2, dims=3)
    assert not torch.allclose(shifted, model(x, t, labels)[0], atol=1e-3)


def test_a_patch_of_the_input_comes_back_at_its_own_place():
    model = small(depth=0)
    x, t, labels = inputs(1)
    changed = x.clone()
    changed[..., 2:4, 6:8] += 1
    difference = (model(changed, t, labels)[0] - model(x, t, labels)[0]).abs().sum(1)[0]
    where = torch.zeros(8, 8, dtype=torch.bool)
    where[2:4, 6:8] = True
    assert (difference[where] > 0).all()
    assert (difference[~where] == 0).all()


def test_the_position_embedding_tells_the_column_in_its_first_half_and_the_row_in_its_second():
    grid = position_embedding(4, 16)[0].view(4, 4, 16)
    assert torch.equal(grid[0, :, :8], grid[3, :, :8])
    assert torch.equal(grid[:, 0, 8:], grid[:, 3, 8:])
    torch.testing.assert_close(grid[1, 2, 0], torch.tensor(2.0).sin())
    torch.testing.assert_close(grid[1, 2, 12], torch.tensor(1.0).cos())


def test_the_time_embedding_has_the_cosines_first():
    values = sinusoids(torch.tensor([0.0, 2.0]))
    assert values.shape == (2, 256)
    assert values[0].tolist() == [1.0] * 128 + [0.0] * 128
    torch.testing.assert_close(
        values[1, [0, 128]],
        torch.tensor([2.0, 2.0]).cos().lerp(torch.tensor(2.0).sin(), torch.tensor([0.0, 1.0])),
    )


def test_a_network_starts_by_predicting_zero():
    output, _ = DiT(8, 2, 3, 16, 1, 2)(*inputs())
    assert not output.any()


def test_half_precision_is_close():
    model, arguments = small(), inputs()
    exact = model(*arguments)[0]
    rough = model.to(torch.bfloat16)(*arguments)[0]
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, atol=0.15, rtol=0.15)


@pytest.mark.parametrize("make", [dit_digits, sit_digits])
def test_the_digits_networks_are_small(make):
    assert sum(parameter.numel() for parameter in make().parameters()) < 900_000


@pytest.mark.parametrize("make", [dit_digits, sit_digits])
def test_a_network_on_pixels_starts_with_the_regression_on_each_pixel(make):
    model, generator = make(), torch.Generator().manual_seed(0)
    data = model.data_std * torch.randn(20_000, 1, 8, 8, generator=generator)
    noise = torch.randn(data.shape, generator=generator)
    for share in (0.1, 0.5, 0.9):
        time = torch.full((len(data),), share, dtype=torch.float64)
        alpha, sigma = per_image(model.path.alpha(time), data), per_image(model.path.sigma(time), data)
        latents, wanted = alpha * data + sigma * noise, model.path.output(data, noise)
        skip, scale = (coefficient[0].float() for coefficient in model.coefficients(time))
        slope = (latents * wanted).mean() / latents.square().mean()
        torch.testing.assert_close(skip, slope, atol=0.01, rtol=0.01)
        torch.testing.assert_close(scale.abs(), (wanted - skip * latents).std(), atol=0.01, rtol=0.01)
        output, _ = model(latents[:4], model.time_scale * time[:4], torch.arange(4))
        torch.testing.assert_close(output, skip * latents[:4])


def test_a_network_on_pixels_adds_its_correction_in_full_precision():
    model = sit_digits().to(torch.bfloat16)
    torch.nn.init.constant_(model.final_layer.linear.bias, 1.0)
    x, time = torch.randn(2, 1, 8, 8), torch.tensor([0.2, 0.7], dtype=torch.float64)
    skip, scale = (per_image(coefficient, x) for coefficient in model.coefficients(time))
    output, _ = model(x, time.float(), torch.tensor([0, 1]))
    torch.testing.assert_close(output, skip * x + scale)


@pytest.mark.skipif(not SHAPES.is_dir(), reason="the listings are not beside this checkout")
@pytest.mark.parametrize("name", ["DiT-XL-2-256x256", "SiT-XL-2-256"])
def test_the_released_checkpoints_fit(name):
    listing = json.loads((SHAPES / f"{name}.json").read_text())
    with torch.device("meta"):
        model = dit_xl_2()
        state = {key: torch.empty(shape) for key, (shape, _) in listing["state_dict"].items()}
    model.load_state_dict(state, strict=True, assign=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == listing["parameters"]
