import pytest
import torch

from genenv.conditions import Embeddings, Labels, both
from genenv.envs.maskgit import MaskGITSampler, schedule_params
from genenv.rng import BatchRng

CONTEXT = torch.tensor([2, 0, 1])


def test_the_label_after_the_last_is_that_of_no_class():
    labels = Labels(7)
    assert torch.equal(labels.given(CONTEXT), CONTEXT)
    assert labels.null(2, CONTEXT.device).tolist() == [7, 7]
    assert both(labels, CONTEXT).tolist() == [2, 0, 1, 7, 7, 7]


def test_prompts_are_rows_of_embeddings_and_the_empty_prompt_stands_for_none():
    prompts, empty = torch.randn(3, 5, 4), torch.randn(5, 4)
    condition = Embeddings(prompts, empty)
    assert condition.num_contexts == 3
    rows = both(condition, CONTEXT)
    assert torch.equal(rows[:3], prompts[CONTEXT])
    assert torch.equal(rows[3:], empty.expand(3, 5, 4))


def test_the_rows_are_where_the_contexts_are():
    condition = Embeddings(torch.randn(3, 4), torch.randn(4))
    assert both(condition, CONTEXT.to("meta")).device.type == "meta"


def test_prompts_and_the_empty_prompt_must_match():
    with pytest.raises(ValueError, match=r"must be of one shape, got \(3, 5, 4\) and \(4,\)"):
        Embeddings(torch.randn(3, 5, 4), torch.randn(4))


def test_a_generator_takes_prompts_where_it_took_labels():
    grid, codes = 2, 6
    prompts, empty = torch.randn(3, codes), torch.zeros(codes)

    def network(tokens, condition):
        logits = condition[:, None].expand(-1, grid**2, -1)
        return logits, logits

    sampler = MaskGITSampler(
        network,
        lambda tokens: tokens[:, None] / codes,
        schedule_params(3, guidance_weight=1.0),
        grid_size=grid,
        codebook_size=codes,
        condition=Embeddings(prompts, empty),
        feature_dim=codes,
        image_shape=(1, grid, grid),
    )
    rng = BatchRng(torch.arange(3))
    state = sampler.start(CONTEXT, rng)
    for t in range(3):
        command = sampler.actions("residual", torch.device("cpu"))(torch.zeros(3, 4), t)
        command["token_temperature"] = torch.full((3,), 1e-6)
        state = sampler.advance(state, command, rng)
    assert torch.equal(state.sampled[:, 0], prompts[CONTEXT].argmax(-1))
