"""A stage of a network: where it is tapped, and how its output converts to a map."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from cefam.errors import CefamError
from cefam.towers.outputs import StandIn

MapLayout = Literal["auto", "channels_first", "channels_last", "tokens"]


@dataclass(frozen=True)
class StageContext:
    """Tensors of a stage other than its map.

    Args:
        prefix: prefix tokens (class token, registers), (B, C, n), or ``None``.
        before_norm: the map (B, C, H, W) before the final LayerNorm if the stage's map is taken after it, else ``None``.
    """

    prefix: Tensor | None = None
    before_norm: Tensor | None = None

    def select(self, index: Tensor | slice) -> "StageContext":
        """The context of the images at ``index``, a tensor (P,) or a slice."""
        return StageContext(*(None if v is None else v[index] for v in (self.prefix, self.before_norm)))


@dataclass
class Stage:
    """One tapped point of the network."""

    name: str  # the module named by the user
    tap: str  # the module whose output is the stage's map; the final norm if `name` is the last block of a ViT
    layout: MapLayout = "auto"  # axis order of that output
    num_prefix: int = 0  # number of prefix tokens in it
    probed_size: tuple[int, int] = (1, 1)  # height and width of the probe image, for tokens
    probed_grid: tuple[int, int] = (1, 1)  # rows and columns of its patches, for tokens
    channels: int = 0  # number of channels C_l
    resumable: bool = True  # whether the stage is a cut of the network (nothing bypasses it)
    elements: int = 0  # number of tensor elements computed after the stage for the probe image, for memory limits
    output: StandIn | None = None  # stand-in for the tapped module; its first tensor is the map
    # stand-ins for the modules that finish before the stage, by name
    stand_ins: dict[str, StandIn] = field(default_factory=dict)

    def to_map(self, raw: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """The stage's output as a map (B, C, H, W) and its prefix tokens (B, C, n) or ``None``."""
        if self.layout == "channels_first":
            return raw, None
        if self.layout == "channels_last":
            return raw.permute(0, 3, 1, 2), None
        tokens = raw.transpose(1, 2)
        prefix, patches = tokens[..., : self.num_prefix], tokens[..., self.num_prefix :]
        return patches.unflatten(2, grid), prefix if self.num_prefix else None  # type: ignore[no-untyped-call]

    def to_raw(self, activation: Tensor, prefix: Tensor | None) -> Tensor:
        """The inverse of :meth:`to_map`."""
        if self.layout == "channels_first":
            return activation
        if self.layout == "channels_last":
            return activation.permute(0, 2, 3, 1)
        patches = activation.flatten(2)
        return torch.cat([patches] if prefix is None else [prefix, patches], dim=2).transpose(1, 2)

    def grid(self, raw: Tensor, image_size: Sequence[int]) -> tuple[int, int]:
        """Height and width of the map inside the stage's output, given the size of the images."""
        if self.layout == "channels_first":
            return raw.shape[2], raw.shape[3]
        if self.layout == "channels_last":
            return raw.shape[1], raw.shape[2]
        patches = raw.shape[1] - self.num_prefix
        if tuple(image_size) == self.probed_size and patches == self.probed_grid[0] * self.probed_grid[1]:
            return self.probed_grid
        # The patch size is fixed; an incomplete patch is cropped (floor) or padded (ceil).
        exact = [
            side * n / probed for side, n, probed in zip(image_size, self.probed_grid, self.probed_size, strict=True)
        ]
        for rows in (math.floor(exact[0]), math.ceil(exact[0])):
            for columns in (math.floor(exact[1]), math.ceil(exact[1])):
                if rows * columns == patches > 0:
                    return rows, columns
        raise CefamError(
            f"Stage {self.name!r} gives {raw.shape[1]} tokens for a {image_size[0]} x {image_size[1]} image, which without "
            f"{self.num_prefix} prefix token(s) form no grid of its patches: pass the number of prefix tokens as `num_prefix_tokens`, "
            f"or images of {self.probed_size[0]} x {self.probed_size[1]}."
        )


@dataclass(frozen=True)
class ClassifierOutput:
    """``logits`` (B, Y); per stage, shallow to deep, ``activations`` (a map (B, C_l, H_l, W_l)) and ``context``."""

    logits: Tensor
    activations: list[Tensor]
    context: list[StageContext]


class Rerun(NamedTuple):
    """Maps and ``logits`` (b, Y), connected by autograd to the first of ``sources``, the stages' raw outputs.

    :meth:`cefam.FrozenClassifier.as_map` converts the gradient of a source to the gradient of its map.
    """

    activations: list[Tensor]
    sources: list[Tensor]
    logits: Tensor
