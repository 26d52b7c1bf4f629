"""Presence: is the concept there at all? Scores of photographs with it against photographs without it, apart from where it is.

The area under the ROC curve of a concept is the chance that a photograph that shows it has a higher score than one that does not.
Photographs without masks of the concept's category are left out: there it is not known whether they show it.
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
    """Area under the ROC curve of every concept, equal scores counted half: (T,), double, NaN where it is undefined.

    Args:
        score: (N, T); NaN where a method cannot express the concept.
        present: whether photograph n shows concept t (N, T).
        known: whether that is known (N, T).
    """
    found = []
    for values, shown, sure in zip(score.T, present.T, known.T, strict=True):
        values, shown = values[sure].double(), shown[sure].long()
        if bool(values.isnan().any()) or shown.unique().numel() < 2:
            found.append(math.nan)
            continue
        # Between 0 and 1, or torchmetrics would take sigmoids, whose rounding makes ties.
        low, high = values.aminmax()
        scaled = (values - low) / (high - low).clamp_min(1e-300)
        found.append(float(binary_auroc(scaled, shown, validate_args=False)))
    return torch.tensor(found, dtype=torch.double)


def to_csv(scores: Mapping[str, Tensor], present: Tensor, known: Tensor, concepts: ConceptSet) -> str:
    """The areas of every method and concept that some photograph shows and another does not."""
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
    """Means over the concepts of each category, and their mean; a concept that a method cannot express counts as chance, 0.5."""
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
