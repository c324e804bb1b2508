"""Tokens as actions: each decision is the image's next token (as where generators are tuned, arXiv 2603.23086).

The environment holds no network but the tokenizer's decoder. A frozen generator is loaded, and asked once a decision,
only where its predictions are observed: "logits", the log-probabilities of the next token, and "features", the hidden
states behind them. So an algorithm for discrete actions can learn without a generator, or start from one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from genenv.actions import TokenActions
from genenv.conditions import Labels
from genenv.envs.raster_ar import RasterGrid, RasterState, check_null_class
from genenv.fields import Field
from genenv.models.raster import RasterTransformer
from genenv.protocols import Context, Observation
from genenv.rng import BatchRng
from genenv.schedules import constant_guidance
from genenv.tiers import backbones_with_any, choose_part, load_part, tier_of

NETWORKS = ("llamagen", "vqgan")
"""Generators of tokens in raster order, the preferred one first, by the names of their parts."""
LOWEST = -1e4
"""Bound of the log-probabilities that are observed."""


class TokenSampler(RasterGrid):
    """Fills a grid in raster order, one token a decision. Nothing is drawn: the agent chooses.

    Args:
        detokenise: tokens (N, h, w) -> images (N, C, H, W) in [0, 1].
        network: predicts the next token before each decision; None where nobody observes it.
        grid_size: side of the grid; T = L = grid_size ** 2.
        codebook_size: number of tokens V.
        num_contexts: what there is to show.
        image_shape: (C, H, W).
        guidance_weight: of the predictions; 0 for none, without an unconditional half.
        compile: run the network through torch.compile.
    """

    stochastic = False

    def __init__(
        self,
        detokenise: Callable[[Tensor], Tensor],
        network: RasterTransformer | None,
        *,
        grid_size: int,
        codebook_size: int,
        num_contexts: int,
        image_shape: tuple[int, int, int],
        guidance_weight: float = 0.0,
        compile: bool = False,
    ):
        read = None if network is None else network.read
        super().__init__(
            torch.compile(read) if compile and read is not None else read,
            None if network is None else network.new_cache,
            detokenise,
            grid_size=grid_size,
            codebook_size=codebook_size,
            condition=Labels(num_contexts),
            feature_dim=0 if network is None else network.embed_dim,
            image_shape=image_shape,
            needs_features=network is not None,
            has_guidance=guidance_weight > 0,
        )
        self.horizon, self.guidance_weight = self.length, guidance_weight
        self.fields["logits"] = Field((codebook_size,), torch.float32, LOWEST, 0.0)

    def actions(self, mode: str, device: torch.device) -> TokenActions:
        """Returns that an action is the next token.

        Raises:
            ValueError: for another mode than the usual one: tokens have no schedule to move, and no units.
        """
        if mode != "residual":
            raise ValueError(
                f"action_mode={mode!r} sets the parameters of a schedule, but the actions are tokens, which have none; "
                "leave it out"
            )
        return TokenActions(self.codebook_size)

    def start(self, context: Context, rng: BatchRng) -> RasterState:
        """Returns the empty grid."""
        return self._look_ahead(self.empty(context))

    def observe(self, state: RasterState, names: Sequence[str]) -> Observation:
        """Returns tokens (N, h, w), V where open; logits (N, V); features (N, L, D), 0 where nothing is predicted yet.

        The logits are log-probabilities of the next token. After the last one, or without a network, they are all
        equal: -log V.
        """
        fields = super().observe(state, names)
        if "logits" in names:
            fields["logits"] = self._log_probabilities(state)
        return fields

    def advance(self, state: RasterState, token: Tensor, rng: BatchRng) -> RasterState:
        """Returns the grid with one more token (N,)."""
        return self._look_ahead(self.put(state, token))

    def use(self, network: RasterTransformer) -> None:
        """Predicts by another network of the same shapes from now on, such as one that is being tuned."""
        self.read, self.new_cache = network.read, network.new_cache

    def _look_ahead(self, state: RasterState) -> RasterState:
        if self.read is None or state.known == self.length:
            return state
        return self.predict(state, self.has_guidance)

    def _log_probabilities(self, state: RasterState) -> Tensor:
        n, size, device = len(state.tokens), self.codebook_size, state.tokens.device
        if state.prediction is None:
            return torch.full((n, size), -math.log(size), device=device)
        weight = torch.full((n,), self.guidance_weight, device=device)
        return state.prediction.guided(weight).log_softmax(-1).clamp(min=LOWEST)


def backbones() -> list[str]:
    """Returns the named backbones that have one of the networks."""
    return backbones_with_any(NETWORKS)


def make_sampler(
    backbone: str,
    num_steps: int | None,
    device: torch.device | str,
    dtype: torch.dtype,
    needs_features: bool,
    compile: bool,
    network: str | None = None,
    guidance_weight: float | None = None,
) -> TokenSampler:
    """Returns the sampler of a named backbone's tokens.

    Args:
        backbone: see `genenv.make.vector`.
        num_steps: None, or the number of tokens L.
        device: where the networks run.
        dtype: of the generator.
        needs_features: load the generator, for "logits" and "features".
        compile: run the generator through torch.compile.
        network: which generator of a backbone that has both of `NETWORKS`, by default the first.
        guidance_weight: w of c + w (c - u) in the logits, constant; 0, the default, for none.

    Raises:
        ValueError: if a value is not legal, or the backbone has no such network.
    """
    part = choose_part(backbone, network, NETWORKS, "generator of tokens in raster order")
    weight = constant_guidance(guidance_weight)
    if weight and not needs_features:
        raise ValueError(
            f"guidance_weight changes the generator's logits alone, got {guidance_weight} where they are not observed; "
            "leave it out, or have 'logits' in observe"
        )
    tier, tokenizer = tier_of(backbone), load_part("vq", backbone).to(device)
    grid_size = tier.image_shape[1] // tokenizer.downsampling
    if num_steps not in (None, grid_size**2):
        raise ValueError(f"num_steps must be the {grid_size**2} tokens of an image, or None, got {num_steps}")
    generator, num_contexts = None, len(tier.class_names)
    if needs_features:
        generator = load_part(part, backbone).to(device, dtype)
        num_contexts = generator.num_classes
        check_null_class(weight, generator.null_class)
    return TokenSampler(
        tokenizer.decode,
        generator,
        grid_size=grid_size,
        codebook_size=tokenizer.codebook_size,
        num_contexts=num_contexts,
        image_shape=tier.image_shape,
        guidance_weight=weight,
        compile=compile,
    )
