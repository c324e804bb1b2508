"""AdaGen's discriminator of natural images: trained heads on the features of a frozen vision transformer.

The projected discriminator of StyleGAN-T (arXiv 2301.09515) as AdaNAT (arXiv 2409.00342) and AdaGen use it, under
AdaNAT's parameter names.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VIRTUAL_BATCH = 8
"""Images that are normalised together, at most."""

CROP_PROBABILITY = 0.5


class EqualisedLinear(nn.Module):
    """A linear layer whose weights are scaled when they are used, not when they are drawn (Karras et al. 2018, 4.1).

    Args:
        in_dim, out_dim: widths.
        lr_multiplier: scales the layer's output and thereby how fast it learns.
    """

    def __init__(self, in_dim: int, out_dim: int, lr_multiplier: float = 1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_dim, in_dim) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_dim))
        self.weight_gain, self.bias_gain = lr_multiplier / math.sqrt(in_dim), lr_multiplier

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_dim) of x (N, in_dim)."""
        return F.linear(x, self.weight * self.weight_gain, self.bias * self.bias_gain)


class ClassMapping(nn.Module):
    """The mapping network of StyleGAN2, from a class label to a condition vector.

    Args:
        num_classes: class labels.
        dim: dimension D of the condition.
        num_layers: layers after the embedding.
        lr_multiplier: of these layers.
    """

    def __init__(self, num_classes: int, dim: int = 512, num_layers: int = 8, lr_multiplier: float = 0.01):
        super().__init__()
        self.num_classes, self.dim, self.num_layers = num_classes, dim, num_layers
        self.embed = EqualisedLinear(num_classes, dim)
        for i in range(num_layers):
            self.add_module(f"fc{i}", EqualisedLinear(dim, dim, lr_multiplier))

    def forward(self, labels: Tensor) -> Tensor:
        """Returns (N, D) of labels (N,)."""
        x = self.embed(F.one_hot(labels, self.num_classes).to(self.embed.weight.dtype))
        x = x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
        for i in range(self.num_layers):
            x = F.leaky_relu(self.get_submodule(f"fc{i}")(x), 0.2) * math.sqrt(2)
        return x


class TextMapping(nn.Module):
    """Takes the direction of a text's CLIP embedding as the condition vector.

    Args:
        dim: dimension D of the embeddings; 1280 for OpenCLIP's ViT-bigG/14.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, embeddings: Tensor) -> Tensor:
        """Returns unit vectors (N, D) of embeddings (N, D)."""
        return F.normalize(embeddings, dim=1)


class SpectralConv1d(nn.Module):
    """A circular convolution over a sequence, divided by its estimated spectral norm (Miyato et al. 2018).

    In training mode every call first improves the estimate u^T W v by one power iteration; in eval mode it stands.

    Args:
        in_channels, out_channels: widths.
        kernel_size: odd.
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int):
        super().__init__()
        conv = nn.Conv1d(in_channels, out_channels, kernel_size)
        self.weight_orig, self.bias = conv.weight, conv.bias
        self.register_buffer("weight_u", F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("weight_v", torch.empty(in_channels * kernel_size))
        for _ in range(15):  # random vectors would make an untrained layer huge in eval mode
            self._iterate()

    @torch.no_grad()
    def _iterate(self) -> None:
        matrix = self.weight_orig.flatten(1)
        self.weight_v = F.normalize(matrix.T @ self.weight_u, dim=0)
        self.weight_u = F.normalize(matrix @ self.weight_v, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, out_channels, L) of x (N, in_channels, L)."""
        if self.training:
            self._iterate()
        norm = self.weight_u @ self.weight_orig.flatten(1) @ self.weight_v
        weight = self.weight_orig / norm
        half = weight.shape[2] // 2
        return F.conv1d(F.pad(x, (half, half), mode="circular"), weight, self.bias)


class LocalBatchNorm(nn.Module):
    """Batch norm over consecutive groups of at most `VIRTUAL_BATCH` images, in training and eval mode alike.

    N images form ceil(N / 8) groups of equal size, or, where that does not divide, of sizes that differ by one, the
    larger ones first. An image's result therefore depends on the others of its group.

    Args:
        num_channels: channels C.
    """

    def __init__(self, num_channels: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, C, L) of x (N, C, L)."""
        num_groups = math.ceil(len(x) / VIRTUAL_BATCH)
        size, num_larger = divmod(len(x), num_groups)
        larger, rest = x.tensor_split([num_larger * (size + 1)])
        parts = ((larger, num_larger), (rest, num_groups - num_larger))
        x = torch.cat([_standardise(part, count) for part, count in parts if count])
        return x * self.weight[:, None] + self.bias[:, None]


def _standardise(x: Tensor, num_groups: int) -> Tensor:
    """Returns x (N, C, L) with mean 0 and variance 1 in each channel of each of the groups of N / num_groups."""
    x = x.unflatten(0, (num_groups, -1))
    variance, mean = torch.var_mean(x, dim=(1, 3), correction=0, keepdim=True)
    return ((x - mean) * (variance + 1e-5).rsqrt()).flatten(0, 1)


class Residual(nn.Module):
    """(f(x) + x) / sqrt(2)."""

    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        """Returns a tensor of the shape of x."""
        return (self.fn(x) + x) / math.sqrt(2)


def _block(num_channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        SpectralConv1d(num_channels, num_channels, kernel_size),
        LocalBatchNorm(num_channels),
        nn.LeakyReLU(0.2),
    )


class Head(nn.Module):
    """One logit for each patch: the product of its features with a projection of the condition.

    Args:
        num_channels: channels C of the features.
        condition_dim: dimension D of the condition.
        embed_dim: dimension of the product.
    """

    def __init__(self, num_channels: int, condition_dim: int, embed_dim: int = 64):
        super().__init__()
        self.main = nn.Sequential(_block(num_channels, 1), Residual(_block(num_channels, 9)))
        self.cls = SpectralConv1d(num_channels, embed_dim, 1)
        self.cmapper = EqualisedLinear(condition_dim, embed_dim)

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        """Returns (N, L) of features (N, C, L) and conditions (N, D)."""
        x = self.cls(self.main(features))
        return (x * self.cmapper(condition)[:, :, None]).sum(1) / math.sqrt(x.shape[1])


class FrozenViT(nn.Module):
    """The tokens of a vision transformer after some of its blocks, and after its positional embedding.

    It stays in eval mode and without gradients to its weights; gradients to the images pass.

    Args:
        vit: a square-image `VisionTransformer` of timm with a class token.
        taps: indices of the blocks.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, vit: Any, taps: Sequence[int]):
        super().__init__()
        self.model = nn.ModuleDict({"model": vit.requires_grad_(False)})
        self.taps = tuple(taps)
        self.image_size: int = vit.patch_embed.img_size[0]
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1), persistent=False)
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Returns (N, C, L) for each block and for the embedding, of images (N, 3, S, S) in [0, 1].

        The class token is added to every patch's.
        """
        vit: Any = self.model["model"]
        embedded: list[Tensor] = []
        with vit.pos_drop.register_forward_hook(lambda module, args, output: embedded.append(output)):
            blocks = vit.forward_intermediates(
                (images - self.mean) / self.std,
                self.taps,
                return_prefix_tokens=True,
                stop_early=True,
                output_fmt="NLC",
                intermediates_only=True,
            )
        first = vit.num_prefix_tokens
        tokens = [*blocks, (embedded[0][:, first:], embedded[0][:, :first])]
        return [(patches + prefix[:, :1]).transpose(1, 2) for patches, prefix in tokens]


class ProjectedDiscriminator(nn.Module):
    """Tells real images from generated ones by the features of a frozen vision transformer.

    Its normalisation compares an image with those beside it (`LocalBatchNorm`): what a whole group shares, such as a
    tint, goes largely unseen, real and generated images must not share a call, and an image alone does not get the
    logits that it gets in a batch.

    Args:
        vit: as of `FrozenViT`, such as `dino_vit_s_16()` with its released weights.
        mapping: `ClassMapping` or `TextMapping`.
        taps: indices of the transformer's blocks; each has a head, and the positional embedding has one.
        embed_dim: of `Head`.
        generator: draws the crops, on the CPU; None for torch's own. Its state is not in the state dict.
    """

    uses_batch_statistics = True

    def __init__(
        self,
        vit: Any,
        mapping: ClassMapping | TextMapping,
        taps: Sequence[int] = (2, 5, 8, 11),
        embed_dim: int = 64,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.dino = FrozenViT(vit, taps)
        self.mapping = mapping
        self.heads = nn.ModuleList(Head(vit.embed_dim, mapping.dim, embed_dim) for _ in range(len(taps) + 1))
        self.generator = generator

    def forward(self, images: Tensor, context: Tensor) -> Tensor:
        """Returns logits (N, heads * L) of images (N, C, H, W) in [0, 1], C being 1 (grey) or 3; large means real.

        Args:
            images: of any size. In training mode half of the calls see one random crop of the transformer's size, the
                same in all images, where they are larger than that; else they are resized.
            context: labels (N,) or embeddings of texts (N, D), as the mapping takes them.
        """
        return self.judge(self.features(images), context)

    def features(self, images: Tensor) -> list[Tensor]:
        """Returns the features (N, C, L) of each tap; the images are cropped or resized as in `forward`."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got shape {tuple(images.shape)}")
        return self.dino(self._resized(images).expand(-1, 3, -1, -1))

    def judge(self, features: Sequence[Tensor], context: Tensor) -> Tensor:
        """Returns logits (N, heads * L) of the features (N, C, L) of each tap."""
        condition = self.mapping(context)
        logits = [head(x, condition) for head, x in zip(self.heads, features, strict=True)]
        return torch.cat(logits, dim=1)

    def _resized(self, images: Tensor) -> Tensor:
        side, sizes, generator = self.dino.image_size, images.shape[-2:], self.generator
        if self.training and min(sizes) > side and torch.rand((), generator=generator) < CROP_PROBABILITY:
            top, left = (int(torch.randint(size - side + 1, (), generator=generator)) for size in sizes)
            return images[..., top : top + side, left : left + side]
        return F.interpolate(images, (side, side), mode="area")


def vision_transformer(**shape: Any) -> nn.Module:
    """Returns an untrained `VisionTransformer` of timm without a classifier.

    Args:
        **shape: its `img_size` (224 by default), `patch_size`, `embed_dim`, `depth` and `num_heads`.

    Raises:
        ImportError: without timm.
    """
    try:
        from timm.models.vision_transformer import VisionTransformer
    except ImportError:
        raise ImportError("the projected discriminator needs timm: pip install 'genenv[scorers]'") from None
    return VisionTransformer(num_classes=0, **shape)


def dino_vit_s_16() -> nn.Module:
    """Returns the ViT-S/16 of DINO (Caron et al. 2021) without its weights."""
    return vision_transformer(patch_size=16, embed_dim=384, depth=12, num_heads=6)
