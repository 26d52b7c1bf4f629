"""Figures for print: IoU curves (Fig. 4), winning stages (Fig. A1), Hit Rate over epochs (Fig. A2), methods side by side (Fig. 2).

Legible in grayscale: lines differ in dashes and markers, bars in hatching. Colors: the color-blind-safe Okabe-Ito palette.
"""

import csv
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from cefam.errors import CefamError
from cefam.io.files import replacing
from cefam.metrics.functional import iou_curves
from cefam.report.contact_sheet import COLORMAP
from cefam.report.examples import Example

SCREEN = 110  # dots per inch of figures for screens
COLUMN, PAGE = 3.3, 6.9  # inches: one column, two columns
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))
MARKS = ("o", "s", "^", "D", "v", "P", "X")
HATCHES = ("", "///", "...", "xxx", "---", "\\\\\\", "+++")
LETTER = 0.7  # width of a letter, in font sizes
LINE = 0.055  # minimum distance of labels, as a share of the axes' height


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
    return figure, axes


def iou_thresholds(example: Example, methods: Sequence[str]) -> Figure:
    """Plot the IoU of the top n percent of pixels of each method's first choice, the ideal and the random curve (Fig. 4)."""
    if example.mask is None:
        raise CefamError(f"{example.title} has no mask: there is no IoU.")
    figure, axes = _axes(COLUMN, 2.5)
    mask = torch.from_numpy(example.mask).unsqueeze(0)
    bounds = None
    for index, method in enumerate(methods):
        chosen = [c for c in example.candidates.get(method, []) if "top1" in c.chosen]
        if not chosen:
            continue
        bounds = iou_curves(torch.from_numpy(chosen[0].map).unsqueeze(0), mask)
        share = np.linspace(0, 100, bounds.predicted.shape[1], endpoint=False)
        axes.plot(
            share, bounds.predicted[0], color=COLORS[index % 6], linestyle=DASHES[index % 7], label=method, lw=1.2
        )
    if bounds is None:
        raise CefamError(f"None of the methods has a region for {example.title}.")
    axes.plot(share, bounds.ideal[0], color="#999999", lw=2.2, alpha=0.7, label="ideal", zorder=0)
    axes.plot(share, bounds.random[0], color="#999999", lw=0.8, marker="|", markevery=10, label="random", zorder=0)
    axes.set_xlabel("top n % of the pixels", fontsize=7)
    axes.set_ylabel("IoU", fontsize=7)
    axes.set_title(example.title, fontsize=8)
    axes.set(xlim=(0, 100), ylim=(0, None))
    axes.legend(fontsize=6, frameon=False)
    return figure


def points(
    values: Mapping[tuple[str, str], tuple[float, float, float]],
    methods: Sequence[str],
    categories: Sequence[str],
    label: str,
) -> Figure:
    """Plot every method's mean with its interval, a panel per category."""
    shown = [name for name in categories if any((method, name) in values for method in methods)]
    if not shown:
        raise CefamError("None of the methods has a value in any category.")
    figure = Figure(figsize=(PAGE, 0.2 * len(methods) + 0.7), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, sharex=True, squeeze=False)[0]
    for axes, category in zip(panels, shown, strict=True):
        for place, method in enumerate(methods):
            mean, low, high = values.get((method, category), (math.nan,) * 3)
            color = COLORS[place % 7]
            axes.plot([low, high], [place, place], color=color, lw=1.2, solid_capstyle="butt")
            axes.plot(mean, place, color=color, marker=MARKS[place % 7], markersize=4)
        axes.set_title(category, fontsize=8)
        axes.grid(axis="x", lw=0.4, color="#dddddd")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
    panels[0].set_yticks(range(len(methods)), methods)
    panels[0].invert_yaxis()
    figure.supxlabel(f"{label}, with 95 % intervals over photographs", fontsize=7)
    return figure


def winning_stages(
    records: Iterable[dict[str, Any]], method: str, stages: Sequence[str] = (), categories: Sequence[str] = ()
) -> Figure:
    """Plot the share of pairs whose best candidate (oracle) comes from each stage, per category (Fig. A1)."""
    counts: dict[str, dict[int, int]] = {}
    for record in records:
        known = record["category"] and record["expressible"] and not math.isnan(record["nra"])
        if record["method"] == method and record["protocol"] == "oracle" and known and int(record["stage"]) >= 0:
            of_stage = counts.setdefault(record["category"], {})
            of_stage[int(record["stage"])] = of_stage.get(int(record["stage"]), 0) + 1
    if not counts:
        raise CefamError(f"No stage was chosen by {method!r} in these records.")
    figure, axes = _axes(COLUMN, 0.35 * len(counts) + 0.9)
    ordered = [name for name in dict.fromkeys((*categories, *counts)) if name in counts]
    number = max(max(of_stage) for of_stage in counts.values()) + 1
    left = np.zeros(len(ordered))
    for stage in range(number):
        share = np.array([100 * counts[c].get(stage, 0) / sum(counts[c].values()) for c in ordered])
        name = stages[stage] if stage < len(stages) else f"stage {stage + 1}"
        axes.barh(
            ordered, share, left=left, label=name, color=COLORS[stage % 7], alpha=0.75, hatch=HATCHES[stage % 7],
            edgecolor="white", height=0.7,
        )  # fmt: skip
        for place, (start, width) in enumerate(zip(left, share, strict=True)):
            if width >= 8:
                axes.text(
                    start + width / 2, place, f"{width:.0f}", ha="center", va="center", fontsize=6,
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
                )  # fmt: skip
        left += share
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("% of the pairs", fontsize=7)
    axes.legend(fontsize=6, frameon=False, ncols=number, loc="lower center", bbox_to_anchor=(0.5, 1))
    return figure


def hit_over_epochs(log: Path, references: dict[str, float], protocol: str = "oracle") -> Figure:
    """Plot the validation Hit Rate over training epochs, with other methods as horizontal lines (Fig. A2)."""
    column = f"regions/{protocol}/hit/mean"
    with log.open(newline="", encoding="utf-8") as lines:
        rows = [(int(r["epoch"]), float(r[column])) for r in csv.DictReader(lines) if r.get(column)]
    if not rows:
        raise CefamError(
            f"{log} holds no {column!r}: train with `data.init_args.regions`, so that regions are measured in every validation."
        )
    figure, axes = _axes(COLUMN, 2.3)
    epochs, values = zip(*rows, strict=True)
    axes.plot(epochs, values, color=COLORS[0], marker="o", markersize=2.5, lw=1.2, label="CE-FAM")
    top, place = 1.05 * max([*values, *references.values()]) or 1, -1.0
    for index, (name, value) in enumerate(sorted(references.items(), key=lambda item: item[1]), start=1):
        place = max(value / top, place + LINE)  # keep labels from overlapping
        axes.axhline(value, color=COLORS[index % 7], linestyle=DASHES[index % 7], lw=1)
        axes.text(1.02, place, name, fontsize=6, va="center", color=COLORS[index % 7], transform=axes.transAxes)
    axes.set_xlabel("epoch", fontsize=7)
    axes.set_ylabel("Hit Rate", fontsize=7)
    axes.set_ylim(0, top)
    return figure


def side_by_side(examples: Sequence[Example], methods: Sequence[str]) -> Figure:
    """Draw one row per example: photograph, mask, and the first choice of every method (Fig. 2)."""
    columns = len(methods) + 2
    each = PAGE / columns
    figure = Figure(figsize=(PAGE, (each + 0.16) * len(examples) + 0.25), layout="constrained")
    grid = figure.subplots(len(examples), columns, squeeze=False)
    for row, example in zip(grid, examples, strict=True):
        for axes in row:
            axes.set(xticks=[], yticks=[])
        row[0].imshow(example.image)
        row[0].set_ylabel(example.title.replace(" (", "\n("), fontsize=min(6, 36 * each))
        if example.mask is not None:
            row[1].imshow(example.mask, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        for axes, method in zip(row[2:], methods, strict=True):
            chosen = [c for c in example.candidates.get(method, []) if "top1" in c.chosen]
            if chosen:
                size = example.image.shape[1::-1]
                values = np.asarray(
                    Image.fromarray(chosen[0].map.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
                )
                axes.imshow(example.image.mean(axis=2), cmap="gray")
                axes.imshow(values, cmap=COLORMAP, alpha=0.7, vmin=min(float(values.min()), 0))
                axes.set_xlabel(chosen[0].caption.replace("  ", "\n"), fontsize=5.5, labelpad=1)
            else:
                axes.set_box_aspect(example.image.shape[0] / example.image.shape[1])
                axes.text(0.5, 0.5, "not\nexpressed", ha="center", va="center", fontsize=6, transform=axes.transAxes)
    titles = ["photograph", "mask", *methods]
    longest = max(len(word) for title in titles for word in title.split())
    font = min(7.0, 72 * each / (LETTER * longest))  # the longest word fits into a column
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(textwrap.fill(title, max(longest, int(72 * each / (LETTER * font)))), fontsize=font)
    return figure


def save(figure: Figure, path: Path, dpi: int = 300) -> None:
    """Write a figure as .png, .pdf or .svg."""
    kind = path.suffix.lstrip(".").lower()
    if kind not in ("png", "pdf", "svg"):
        raise CefamError(f"A figure is written as .png, .pdf or .svg, not as {path.name!r}.")
    with replacing(path) as temporary:
        figure.savefig(temporary, format=kind, dpi=dpi)
