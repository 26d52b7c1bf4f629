"""Contact sheets: measured candidates with photograph and mask."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cefam.io.files import replacing
from cefam.report.examples import Candidate, Example

COLORMAP = "viridis"  # perceptually uniform, unlike jet
BLOCKS_ACROSS = 4
FRAMES = {"top1": "tab:red", "oracle": "tab:orange"}


def contact_sheet(examples: Sequence[Example]) -> Figure:
    """Draw one block per example: photograph and mask, then one row of measured candidates per method.

    The method's first choice has a red frame; if the oracle selects another candidate, that one has an orange frame. Every
    map is scaled separately, from its minimum (0 if it is not negative) to its maximum, because units differ.
    """
    methods = list(dict.fromkeys(method for example in examples for method in example.candidates))
    width = max((len(each) for example in examples for each in example.candidates.values()), default=1)
    across = min(BLOCKS_ACROSS, len(examples))
    down = math.ceil(len(examples) / across)
    rows, columns = len(methods) + 1, max(width, 2)
    size = (across * (0.95 * columns + 0.55), down * (1.12 * rows + 0.35) + 0.3)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Numbers: NRA. Red: the method's first choice. Orange: the ground truth's choice.", fontsize=8)
    blocks = figure.subfigures(down, across, squeeze=False).flatten()
    for block, example in zip(blocks, examples, strict=False):
        block.suptitle(example.title, fontsize=8)
        grid = block.subplots(rows, columns, squeeze=False)
        for axes in grid.flatten():
            axes.set_axis_off()
        _photograph(grid[0], example)
        for row, method in zip(grid[1:], methods, strict=True):
            candidates = example.candidates.get(method, [])
            for axes, candidate in zip(row, candidates, strict=False):
                _candidate(axes, example, candidate)
            row[0].set_axis_on()
            row[0].set(xticks=[], yticks=[])
            row[0].set_ylabel(method, fontsize=6)
            if not candidates:
                row[0].text(0.5, 0.5, "not\nexpressed", ha="center", va="center", fontsize=6)
    return figure


def _photograph(row: Any, example: Example) -> None:
    """Draw the photograph and the mask, if any."""
    row[0].imshow(example.image)
    if example.mask is not None:
        row[1].imshow(example.image)
        mask = _resized(example.mask.astype(np.float32), example.image.shape[:2], Image.Resampling.NEAREST)
        row[1].imshow(0.25 + 0.75 * mask, cmap="gray", vmin=0, vmax=1, alpha=0.75)
        row[1].set_title(f"mask {100 * example.mask.mean():.1f} %", fontsize=6, pad=2)


def _candidate(axes: Any, example: Example, candidate: Candidate) -> None:
    values = _resized(candidate.map, example.image.shape[:2], Image.Resampling.BILINEAR)
    low = min(float(values.min()), 0.0)
    axes.set_axis_on()
    axes.set(xticks=[], yticks=[])
    axes.imshow(example.image)
    axes.imshow(values, cmap=COLORMAP, vmin=low, vmax=max(float(values.max()), low + 1e-12), alpha=0.65)
    axes.set_title(candidate.caption, fontsize=6, pad=2)
    frame = next((color for protocol, color in FRAMES.items() if protocol in candidate.chosen), None)
    for spine in axes.spines.values():
        spine.set(visible=frame is not None, edgecolor=frame, linewidth=2.5)


def _resized(values: np.ndarray, size: Sequence[int], how: Image.Resampling) -> np.ndarray:
    return np.asarray(Image.fromarray(values.astype(np.float32)).resize((size[1], size[0]), how))


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
