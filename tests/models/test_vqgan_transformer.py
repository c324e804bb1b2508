import math

import pytest
import torch
import torch.nn.functional as F

from genenv.models.vqgan_transformer import VQGANTransformer, vqgan_imagenet

GRID, CODES, CLASSES, DIM, HEADS = 3, 10, 4, 16, 2
LENGTH = GRID**2


def small_transformer(dropout=0.0, **kwargs):
    torch.manual_seed(0)
    model = VQGANTransformer(GRID, CODES, DIM, 2, HEADS, num_classes=CLASSES, dropout=dropout, **kwargs)
    for parameter in model.parameters():
        parameter.data.add_(0.3 * torch.randn(parameter.shape))  # far from uniform, and no bias is 0
    return model.eval().requires_grad_(False)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(CODES, (3, LENGTH), generator=generator), torch.tensor([0, 3, CLASSES])


def oracle(state, tokens, labels):
    """Returns the logits (N, L, V) of the whole sequence, from the parameters alone."""
    x = state["tok_emb.weight"][torch.cat([labels[:, None], tokens[:, :-1]], 1)] + state["pos_emb"]

    def norm(x, name):
        return F.layer_norm(x, (DIM,), state[f"{name}.weight"], state[f"{name}.bias"])

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    for i in range(2):
        block, out = f"blocks.{i}", []
        h = norm(x, f"{block}.ln1")
        q, k, v = (linear(h, f"{block}.attn.{name}").chunk(HEADS, -1) for name in ("query", "key", "value"))
        for head in range(HEADS):
            score = q[head] @ k[head].transpose(1, 2) / math.sqrt(DIM / HEADS)
            out.append(score.masked_fill(later, -math.inf).softmax(-1) @ v[head])
        x = x + linear(torch.cat(out, -1), f"{block}.attn.proj")
        hidden = linear(norm(x, f"{block}.ln2"), f"{block}.mlp.0")
        x = x + linear(hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{block}.mlp.2")
    return norm(x, "ln_f") @ state["head.weight"].T


def test_the_network_is_min_gpt(batch):
    tokens, labels = batch
    model = small_transformer()
    torch.testing.assert_close(
        model(tokens[:, :-1], labels)[0], oracle(model.state_dict(), tokens, labels), rtol=1e-5, atol=1e-5
    )


def test_the_parameters_have_the_official_names():
    block = [
        *(f"ln{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")),
        *(f"attn.{name}.{kind}" for name in ("key", "query", "value", "proj") for kind in ("weight", "bias")),
        *(f"mlp.{i}.{kind}" for i in (0, 2) for kind in ("weight", "bias")),
    ]
    expected = {"tok_emb.weight", "pos_emb", "ln_f.weight", "ln_f.bias", "head.weight"}
    expected |= {f"blocks.{i}.{name}" for i in range(2) for name in block}
    shapes = {name: tuple(value.shape) for name, value in small_transformer().state_dict().items()}
    assert shapes.keys() == expected
    assert shapes["tok_emb.weight"] == shapes["head.weight"] == (CODES, DIM)
    assert shapes["pos_emb"] == (1, LENGTH, DIM)
    assert shapes["blocks.1.mlp.0.weight"] == (4 * DIM, DIM)


def test_the_masks_of_a_file_are_passed_over(batch):
    tokens, labels = batch
    model = small_transformer()
    masks = {f"blocks.{i}.attn.mask": torch.ones(1, 1, LENGTH, LENGTH).tril() for i in range(2)}
    other = VQGANTransformer(GRID, CODES, DIM, 2, HEADS, num_classes=CLASSES).eval()
    other.load_state_dict(model.state_dict() | masks)
    assert torch.equal(other(tokens[:, :-1], labels)[0], model(tokens[:, :-1], labels)[0])
    with pytest.raises(RuntimeError, match=r"Unexpected key.*surplus"):
        other.load_state_dict(model.state_dict() | {"surplus": torch.zeros(1)})


def test_a_label_and_the_token_of_its_number_are_one_embedding(batch):
    tokens, labels = batch
    model = small_transformer()
    before = model(tokens[:, :-1], labels)[0]
    model.tok_emb.weight[3] = model.tok_emb.weight[5]
    moved = (model(tokens[:, :-1], labels)[0] - before).abs().amax(2) > 1e-6  # (N, L)
    read = torch.cat([labels[:, None], tokens[:, :-1]], dim=1)
    assert torch.equal(moved, (read == 3).cummax(1).values)


def test_a_prediction_depends_on_the_tokens_before_it_only(batch):
    tokens, labels = batch[0][:, :-1], batch[1]
    model = small_transformer()
    logits, _ = model(tokens, labels)
    for place in range(LENGTH - 1):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % CODES
        moved = (model(changed, labels)[0] - logits).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [False] * (place + 1) + [True] * (LENGTH - 1 - place)


def test_log_probabilities_add_up_to_one_over_the_tokens_of_a_place(batch):
    tokens, labels = batch
    model, place = small_transformer(), LENGTH - 1
    total = 0
    for code in range(CODES):
        tokens[:, place] = code
        total = total + model.log_prob(tokens, labels)[:, place].exp()
    torch.testing.assert_close(total, torch.ones(3))


def test_dropout_acts_in_training_alone(batch):
    tokens, labels = batch[0][:, :-1], batch[1]
    model = small_transformer(dropout=0.5)
    assert torch.equal(model(tokens, labels)[0], small_transformer()(tokens, labels)[0])
    model.train()
    assert not torch.equal(model(tokens, labels)[0], model(tokens, labels)[0])


def test_labels_beyond_the_token_table_are_refused():
    VQGANTransformer(2, 10, 4, 1, 1, num_classes=9)
    VQGANTransformer(2, 10, 4, 1, 1, num_classes=10, null_class=False)
    with pytest.raises(ValueError, match="must fit the token table of codebook_size=10, got 11 labels"):
        VQGANTransformer(2, 10, 4, 1, 1, num_classes=10)


def test_the_released_generator_has_its_published_size():
    with torch.device("meta"):
        model = vqgan_imagenet()
    assert round(sum(p.numel() for p in model.parameters()) / 1e9, 1) == 1.4
    assert model.grid_size == 16
    assert not model.null_class
