"""Presence: how well a method's scores separate photographs that show a concept from those that do not.

The area under a concept's ROC curve (AUC) is the probability that a photograph showing it has a higher score than one that
does not. Photographs without masks of the concept's category are excluded, because its presence is unknown.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from cefam.concepts.sets import ConceptSet
from cefam.io.reading import read_csv
from cefam.metrics.means import category_means

FILE = "presence.csv"
COLUMNS = ("method", "label", "word", "category", "auc", "with", "without")


def roc_areas(score: Tensor, present: Tensor, known: Tensor) -> Tensor:
    """Area under the ROC curve of every concept (T,), double; ties count one half, NaN where undefined.

    Args:
        score: scores (N, T); NaN if a method cannot express the concept.
        present: whether photograph n shows concept t (N, T).
        known: whether ``present`` is known (N, T).
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
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    shown, absent = (present & known).sum(dim=0).tolist(), (~present & known).sum(dim=0).tolist()
    for method, score in scores.items():
        for index, area in enumerate(roc_areas(score, present, known).tolist()):
            concept = concepts.concepts[index]
            if shown[index] and absent[index]:
                cell = "" if math.isnan(area) else f"{area:.9g}"
                writer.writerow(
                    [method, concept.number, concept.word, concept.category, cell, shown[index], absent[index]]
                )
    return out.getvalue()


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
