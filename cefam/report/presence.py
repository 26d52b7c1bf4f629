"""Quality of a method's concept scores: AUC of each concept, and precision of the concepts that it ranks first.

The area under a concept's ROC curve (AUC) is the probability that a photograph showing it has a higher score than one that
does not. Photographs without masks of the concept's category are excluded, because its presence is unknown.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from cefam.concepts.sets import ConceptSet
from cefam.io.files import csv_text
from cefam.io.reading import read_csv
from cefam.metrics.functional import category_means

FILE, LISTS = "presence.csv", "lists.csv"
COLUMNS = ("method", "label", "word", "category", "auc", "with", "without")
LENGTHS = (3, 8)  # of lists
TOGETHER = 0.9  # correlation over photographs above which a concept says what another one has said
FREQUENT, RANDOM = "most frequent concepts", "random concepts"


def roc_areas(score: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Areas under the ROC curves of scores (N, T), over the ``known`` rows: (T,), double.

    Ties count one half; NaN where no photograph, or every one, shows the concept, or a score is missing.
    """
    found = []
    for values, shown, sure in zip(score.T, present.T, known.T, strict=True):
        values, shown = values[sure].double(), shown[sure].long()
        if bool(values.isnan().any()) or shown.unique().numel() < 2:
            found.append(math.nan)
            continue
        # Scale to [0, 1]; otherwise torchmetrics applies a sigmoid, whose rounding creates ties.
        low, high = values.aminmax()
        scaled = (values - low) / (high - low).clamp_min(1e-300)
        found.append(float(binary_auroc(scaled, shown, validate_args=False)))
    return torch.tensor(found, dtype=torch.double)


def to_csv(scores: Mapping[str, Tensor], present: Tensor, known: Tensor, concepts: ConceptSet) -> str:
    """AUCs as CSV, for every method and every concept with both positive and negative photographs."""
    shown, absent = (present & known).sum(dim=0).tolist(), (~present & known).sum(dim=0).tolist()
    rows: list[Sequence[Any]] = [COLUMNS]
    for method, score in scores.items():
        for index, area in enumerate(roc_areas(score, present, known).tolist()):
            about = concepts.concepts[index]
            if shown[index] and absent[index]:
                cell = "" if math.isnan(area) else f"{area:.9g}"
                rows.append([method, about.number, about.word, about.category, cell, shown[index], absent[index]])
    return csv_text(rows)


def to_text(path: Path, categories: Sequence[str]) -> str:
    """Format the mean AUC of each category and the mean over categories; inexpressible concepts count as 0.5 (chance)."""
    rows: dict[str, dict[str, list[float]]] = {}
    for _, row in read_csv(path, COLUMNS)[1]:
        rows.setdefault(row["method"], {}).setdefault(row["category"], []).append(float(row["auc"] or 0.5))
    label = max([len(name) for name in rows] + [12])
    lines = ["Presence: AUC of photographs with the concept against those without it, mean over concepts"]
    lines.append(" " * label + "".join(f"{name[:8]:>9}" for name in (*categories, "avg")))
    for method, found in rows.items():
        values = [found.get(name, []) for name in categories]
        total = torch.tensor([math.fsum(of_category) for of_category in values], dtype=torch.double)
        each, average = category_means(total, torch.tensor([len(of_category) for of_category in values]))
        cells = ("-" if math.isnan(value) else f"{value:.3f}" for value in (*each.tolist(), float(average)))
        lines.append(f"{method:<{label}}" + "".join(f"{cell:>9}" for cell in cells))
    return "\n".join([*lines, ""])


def lists(scores: Mapping[str, Tensor], present: Tensor, known: Tensor) -> list[tuple[str, str, float, float, float]]:
    """Precision and redundancy of the concepts that a method ranks first, from scores (N, T) and what is present and known (N, T).

    Per photograph, among the concepts whose presence is known there and that only some photographs show: "precision k", the share
    of the first k that are present; "lift k", that minus the precision of the most frequent concepts; "redundant", how many of the
    first 8 rise and fall with one before them (correlation over photographs above 0.9). Concepts that a method cannot express
    come last.

    Returns:
        Method, measure, mean over photographs, and its 95 % interval (bootstrap over photographs).
    """
    usable = ((present & known).any(dim=0) & (~present & known).any(dim=0)).nonzero().squeeze(1)
    present, known = present[:, usable], known[:, usable]
    rows = {name: score[:, usable].double().nan_to_num(-math.inf) for name, score in scores.items()}
    often = (present & known).double().sum(dim=0) / known.double().sum(dim=0)
    rows[FREQUENT] = often.expand(len(present), -1)
    rows[RANDOM] = torch.rand(present.shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    enough = known.sum(dim=1) >= max(LENGTHS)
    if not bool(enough.any()):
        return []
    draws = torch.randint(int(enough.sum()), (1000, int(enough.sum())), generator=torch.Generator().manual_seed(0))
    found, precision = [], {}
    for name, score in rows.items():
        order = score.masked_fill(~known, -math.inf)[enough].argsort(dim=1, descending=True, stable=True)
        right = present[enough].gather(1, order).double()
        each = {f"precision {k}": right[:, :k].mean(dim=1) for k in LENGTHS}
        precision[name] = each
        if name not in (FREQUENT, RANDOM):
            finite = score.isfinite().all(dim=0)
            alike = torch.corrcoef(score.masked_fill(~finite, 0).T).nan_to_num(0) > TOGETHER
            first = order[:, : max(LENGTHS)]
            pairs = alike[first.unsqueeze(2), first.unsqueeze(1)].tril(diagonal=-1)
            each["redundant"] = pairs.any(dim=2).double().sum(dim=1)
        for measure, values in each.items():
            found.append((name, measure, *_interval(values, draws)))
    for name, each in precision.items():
        for k in LENGTHS if name != FREQUENT else ():
            lift = each[f"precision {k}"] - precision[FREQUENT][f"precision {k}"]
            found.append((name, f"lift {k}", *_interval(lift, draws)))
    return found


def _interval(values: Tensor, draws: Tensor) -> tuple[float, float, float]:
    """Mean of values (N,), and its 95 % interval over resamples (R, N)."""
    low, high = torch.quantile(values[draws].mean(dim=1), torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return float(values.mean()), low, high


def lists_to_text(found: Sequence[tuple[str, str, float, float, float]]) -> str:
    """Result of :func:`lists` as a table: a row per method."""
    measures = list(dict.fromkeys(measure for _, measure, *_ in found))
    cells = {(name, measure): f"{value:.3f} [{low:.3f}, {high:.3f}]" for name, measure, value, low, high in found}
    names = list(dict.fromkeys(name for name, *_ in found))
    label = max([len(name) for name in names] + [12])
    lines = ["Lists: the concepts that score highest in a photograph, means over photographs, 95 % intervals"]
    for part in (measures[:3], measures[3:]):
        lines += ["", " " * label + "".join(f"{measure:>24}" for measure in part)]
        lines += [f"{n:<{label}}" + "".join(f"{cells.get((n, measure), '-'):>24}" for measure in part) for n in names]
    return "\n".join([*lines, ""])
