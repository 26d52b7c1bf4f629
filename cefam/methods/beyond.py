"""Beyond the paper: one map per concept that chooses no stage. See docs/beyond.md.

The score is, to first order, a sum over stages and places: S ~ const + sum_l mean_x (dS/dz^l . A^l(x)). So its map is the sum of the maps
of all stages, each with the gradient by its pooled activations z, not by its maps: choosing one stage throws the others away.
"""

from collections.abc import Sequence
from typing import Literal, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam.attribution.batching import Layout, scattered
from cefam.attribution.encoding import Encoding, single_precision
from cefam.attribution.weights import channel_weights, fuse_signed
from cefam.methods.base import Activated, Bench, RegionMethod
from cefam.methods.ce_fam import encoding_of
from cefam.pairs import Candidates, ConceptPairs
from cefam.settings import SettingsChanges
from cefam.views import resize_regions

Sum = Literal["signed", "relu", "normalized"]
CELLS = 56  # of the grid on which maps are added and smoothed, a side
NEAR = 0.25  # of the side: how far a cell reaches
ALIKE = 0.25  # of the view's contrast: what still looks alike


class BeyondRegions(RegionMethod):
    """The sum of the stages' maps, at several scales of the view, smoothed within what looks alike.

    It has no masks, no labels, no choice of a stage, and no backward pass: the gradient goes through the translator alone.

    Args:
        bench: with the trained translator.
        add: how the stages' maps are added: "signed"; "relu", positive parts; "normalized", positive parts, each divided by its spread.
        scales: of the view at which the classifier looks; their maps are averaged, each divided by its spread. A classifier of a fixed
            size looks once.
        guide: whether the map is smoothed where the photograph looks alike (joint bilateral).
        sharpen: exponent of the final map, exp(``sharpen`` x z-score): ranks stay, the energy moves to the top; 0: none.
        changes: settings that differ from the bench's.
    """

    def __init__(
        self,
        bench: Bench,
        add: Sum = "signed",
        scales: Sequence[float] = (1.0, 1.5),
        guide: bool = True,
        sharpen: float = 2.0,
        **changes: Unpack[SettingsChanges],
    ) -> None:
        super().__init__(bench)
        self.add, self.guide, self.sharpen = add, guide, sharpen
        # A network of a fixed size would shrink the enlarged view again.
        self.scales = tuple(scales) if bench.classifier.preprocessing.size is None else (1.0,)
        settings = bench.settings.changed(derivative="branch").changed(**changes)
        self.explainer = bench.trained.explainer(settings=settings)

    def regions(
        self, activated: Activated, pairs: ConceptPairs, size: Sequence[int], num_candidates: int
    ) -> Candidates:
        """One candidate: the sum. Its score is the concept's."""
        images = activated.images
        grid = (CELLS, CELLS)
        total = torch.zeros(len(pairs), *grid, device=images.device)
        for scale in self.scales:
            total += _scaled(self._summed(self._encoding(activated, scale), pairs, grid))
        if self.guide:
            affinity = activated.once(("affinity", grid), lambda: alike(images, grid))
            layout = Layout(pairs.image, len(images))
            at = (layout.slot, layout.image)
            coarse = scattered(F.avg_pool2d(total.unsqueeze(1), 2).flatten(1), at, (layout.width, len(images)))
            total = torch.einsum("bnk,sbk->sbn", affinity, coarse)[at].view_as(total)
        centered = _scaled(total - total.mean(dim=(1, 2), keepdim=True))
        total = (self.sharpen * centered).exp() if self.sharpen else total.relu()
        score = self._encoding(activated, 1.0).similarity[pairs.image, pairs.concept]
        maps = resize_regions(total, size).unsqueeze(1)
        one = torch.ones(len(pairs), 1, dtype=torch.bool, device=images.device)
        return Candidates(maps, score.double().unsqueeze(1), -one.long(), one)

    def _encoding(self, activated: Activated, scale: float) -> Encoding:
        """The encoding of the view, or of the view enlarged."""
        if scale == 1.0:
            return encoding_of(self.explainer, activated)
        return activated.once(("beyond", self.explainer.translator, scale), lambda: self._enlarged(activated, scale))

    def _enlarged(self, activated: Activated, scale: float) -> Encoding:
        images = activated.images
        pixels = images.float() / (1 if images.is_floating_point() else 255)
        side = [round(scale * length) for length in images.shape[-2:]]
        return self.explainer.encode(F.interpolate(pixels, side, mode="bilinear", align_corners=False))

    def _summed(self, encoding: Encoding, pairs: ConceptPairs, grid: Sequence[int]) -> Tensor:
        """The sum of the stages' maps (P, h, w)."""
        layout = Layout(pairs.image, len(encoding.similarity))
        explainer = self.explainer
        with single_precision(encoding.device):
            weights = channel_weights(explainer.networks, encoding, pairs, layout, explainer.settings)
        total = torch.zeros(len(pairs), *grid, device=encoding.device)
        for activation, beta in zip(encoding.output.activations, weights, strict=True):
            cells = activation.shape[-2] * activation.shape[-1]
            part = resize_regions(fuse_signed(activation, beta, layout) * cells, grid)
            if self.add != "signed":
                part = part.relu()
            total += _scaled(part) if self.add == "normalized" else part
        return total


def _scaled(maps: Tensor) -> Tensor:
    """Maps (P, h, w) divided by their spread; a constant map stays as it is."""
    spread = maps.std(dim=(1, 2), keepdim=True)
    return maps / torch.where(spread > 0, spread, torch.ones_like(spread))


def _places(grid: Sequence[int], device: torch.device) -> Tensor:
    """Centers of the cells of a grid (N, 2), the side being 1."""
    lines = ((torch.arange(n, device=device) + 0.5) / n for n in grid)
    rows, columns = torch.meshgrid(*lines, indexing="ij")
    return torch.stack([rows.flatten(), columns.flatten()], dim=1)


def alike(images: Tensor, grid: Sequence[int]) -> Tensor:
    """How much each cell of a grid looks like each other, near it: rows that add to 1 (B, N, N / 4).

    A Gaussian of the distance (a quarter of the side) and of the difference of color, whose unit is the view's own contrast. The map is
    read on a grid half as fine (N / 4 cells), which a Gaussian of that width does not feel.
    """
    pixels = images.float() / (1 if images.is_floating_point() else 255)
    half = [n // 2 for n in grid]
    colors, keys = (F.interpolate(pixels, g, mode="area").flatten(2).transpose(1, 2) for g in (list(grid), half))
    contrast = colors.std(dim=1).norm(dim=1).clamp_min(1e-3).view(-1, 1, 1)
    near = torch.cdist(_places(grid, images.device), _places(half, images.device)) / NEAR
    differ = torch.cdist(colors, keys) / (ALIKE * contrast)
    weight = (-(near.square() + differ.square()) / 2).exp()
    total: Tensor = weight / weight.sum(dim=2, keepdim=True)
    return total
