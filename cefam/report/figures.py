"""Pictures: contact sheets of regions beside their masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from cefam.files import whole
from cefam.views import resize_regions

COLORMAP = "viridis"  # perceptually even, unlike jet


@dataclass(frozen=True)
class Example:
    """One row of a contact sheet.

    ``image`` (3, H, W) in [0, 1]; ``mask`` (h, w), boolean, or ``None``; ``maps``: one (h_l, w_l) per stage; ``captions``:
    one per stage; ``chosen``: the stage with the largest association; ``title``: the concept.
    """

    title: str
    image: Tensor
    mask: Tensor | None
    maps: Sequence[Tensor]
    captions: Sequence[str]
    chosen: int


def contact_sheet(examples: Sequence[Example], stages: Sequence[str]) -> Figure:
    """Image, mask and the maps of all stages, a row per example; the chosen stage is framed.

    Every map has a scale of its own, from 0 to its largest value: maps of different stages have different units.
    """
    columns = 2 + len(stages)
    figure = Figure(figsize=(1.9 * columns, 2.1 * len(examples) + 0.3), layout="constrained")
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        height, width = example.image.shape[-2:]
        picture = example.image.permute(1, 2, 0).cpu().numpy()
        row[0].imshow(picture)
        row[0].set_title(example.title, fontsize=8, wrap=True)
        row[1].imshow(picture)
        if example.mask is not None:
            mask = torch.nn.functional.interpolate(example.mask[None, None].float(), (height, width))[0, 0]
            row[1].imshow(0.25 + 0.75 * mask.cpu().numpy(), cmap="gray", vmin=0, vmax=1, alpha=0.75)
            row[1].set_title(f"mask ({100 * float(mask.mean()):.1f} %)", fontsize=8)
        for stage, (axes, region) in enumerate(zip(row[2:], example.maps, strict=True)):
            full = resize_regions(region[None].float().cpu(), (height, width))[0]
            axes.imshow(picture)
            axes.imshow(full.numpy(), cmap=COLORMAP, vmin=0, vmax=max(float(full.max()), 1e-12), alpha=0.65)
            axes.set_title(f"{stages[stage]}\n{example.captions[stage]}", fontsize=7)
            if stage == example.chosen:
                for spine in axes.spines.values():
                    spine.set(edgecolor="red", linewidth=3, visible=True)
        for axes in row:
            axes.set(xticks=[], yticks=[])
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with whole(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
