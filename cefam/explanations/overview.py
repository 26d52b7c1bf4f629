"""Overview of many explanations: the most important concepts of a class or a set, their stages, and misclassified images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from cefam.explanations.page import environment
from cefam.explanations.text import percent, signed
from cefam.explanations.types import Findings
from cefam.io.files import csv_text

LEADING = 3  # concepts per class in the table of classes
ROWS, COLUMNS = 24, 12  # classes and concepts of the heat map, at most
Example = tuple[str, str, str]  # caption, picture as a data URI, alternative text


@dataclass(frozen=True)
class ConceptSummary:
    """A concept over many images.

    ``images`` is the number of images in which it was explained, ``share`` that as a share of all images; ``mean`` and
    ``spread`` are of its contributions in them; ``stages`` counts images per stage; ``largest`` names the photographs with its
    largest absolute contributions.
    """

    number: int
    word: str
    category: str
    images: int
    share: float
    mean: float
    spread: float
    stages: dict[str, int]
    largest: list[str] = field(default_factory=list)


def record(name: str, explanation: Findings, label: int | None) -> dict[str, Any]:
    """The fields of an explanation that an overview uses, in plain types."""
    return {
        "name": name,
        "label": label,
        **{field: getattr(explanation, field) for field in ("target", "predicted", "probability")},
        "concepts": [part.row(explanation.stages) for part in explanation],
    }


def leading_concepts(records: Sequence[Mapping[str, Any]], examples: int = 4) -> list[ConceptSummary]:
    """Summarize the concepts of these images, sorted by mean absolute contribution over all images, descending.

    For the order, an image in which a concept was not explained counts as 0; means and spreads exclude such images.
    """
    found: dict[int, list[tuple[float, str, str]]] = {}
    about: dict[int, tuple[str, str]] = {}
    for each in records:
        for row in each["concepts"]:
            about[row["number"]] = (row["word"], row["category"])
            found.setdefault(row["number"], []).append((row["contribution"] or 0.0, row["stage"], each["name"]))
    made = []
    for number, seen in found.items():
        values = np.array([value for value, _, _ in seen])
        leading = sorted(seen, key=lambda one: -abs(one[0]))[:examples]
        made.append(
            ConceptSummary(
                number=number,
                word=about[number][0],
                category=about[number][1],
                images=len(seen),
                share=len(seen) / len(records),
                mean=float(values.mean()),
                spread=float(values.std()),
                stages=dict(Counter(stage for _, stage, _ in seen).most_common()),
                largest=[name for _, _, name in leading],
            )
        )
    weight = {number: sum(abs(value) for value, _, _ in seen) for number, seen in found.items()}
    return sorted(made, key=lambda each: (-weight[each.number], each.number))


@dataclass(frozen=True)
class Overview:
    """An overview of a set of images: a record per image (:func:`record`), class names by index, doubts by concept number."""

    title: str
    records: list[dict[str, Any]]
    class_names: dict[int, str]
    doubts: Mapping[int, str] = field(default_factory=dict)

    @cached_property
    def leading(self) -> list[ConceptSummary]:
        """Summaries of the concepts over all images."""
        return leading_concepts(self.records)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """One row per explained class: number of images, number correctly classified (if known), and leading concepts."""
        rows = []
        for target in sorted({each["target"] for each in self.records}):
            mine = [each for each in self.records if each["target"] == target]
            known = [each for each in mine if each["label"] is not None]
            right = sum(each["predicted"] == each["label"] for each in known)
            leading = leading_concepts(mine)[:LEADING]
            rows.append(
                {
                    "class": self.class_names[target],
                    "images": len(mine),
                    "right": f"{right} of {len(known)}" if known else "-",
                    "leading concepts": ", ".join(f"{c.word} {signed(c.mean)}" for c in leading),
                }
            )
        return rows

    @property
    def labeled(self) -> bool:
        """Whether the class of any image is known."""
        return any(each["label"] is not None for each in self.records)

    @property
    def heat(self) -> tuple[list[str], list[tuple[str, list[float | None]]]]:
        """Words of the leading concepts, and per class their mean contributions in its images; ``None``: never explained."""
        concepts = self.leading[:COLUMNS]
        counts = Counter(each["target"] for each in self.records)
        rows = []
        for target, _ in counts.most_common(ROWS):
            found = {c.number: c.mean for c in leading_concepts([r for r in self.records if r["target"] == target])}
            rows.append((self.class_names[target], [found.get(concept.number) for concept in concepts]))
        return [concept.word for concept in concepts], rows

    @property
    def wrong(self) -> list[dict[str, Any]]:
        """Misclassified images with a known label, by probability, descending."""
        found = [r for r in self.records if r["label"] is not None and r["predicted"] != r["label"]]
        return [
            {
                "photograph": each["name"],
                "label": self.class_names[each["label"]],
                "predicted": self.class_names[each["predicted"]],
                "probability": percent(each["probability"]) if each["predicted"] == each["target"] else "-",
                "leading concepts": ", ".join(
                    f"{c['word']} {signed(c['contribution'])}" for c in each["concepts"][:LEADING]
                ),
            }
            for each in sorted(found, key=lambda each: -each["probability"])
        ]

    def to_dict(self) -> dict[str, Any]:
        """The overview in plain types."""
        return {
            "format": "cefam overview",
            "version": 1,
            "title": self.title,
            "images": len(self.records),
            "doubtful": {str(number): reason for number, reason in self.doubts.items()},
            "concepts": [asdict(each) for each in self.leading],
            "classes": self.classes,
            "wrong": self.wrong,
        }

    def to_csv(self) -> str:
        """CSV with one line per concept."""
        names = ("number", "word", "category", "images", "share", "mean", "spread")
        rows = [
            [*(getattr(each, name) for name in names), "; ".join(f"{name} {n}" for name, n in each.stages.items())]
            for each in self.leading
        ]
        return csv_text([(*names, "stages"), *rows])

    def page(self, examples: Mapping[int, Sequence[Example]], largest: int) -> str:
        """Render the HTML page: the ``largest`` leading concepts as cards, with pictures by concept number."""
        shown = self.leading[:largest]
        most = max((abs(each.mean) for each in shown), default=0.0) or 1.0
        cards = [(each, 100 * each.mean / most, examples.get(each.number, [])) for each in shown]
        return (
            environment()
            .get_template("overview.html")
            .render(
                it=self,
                cards=cards,
                data=[{"mean": c.mean, "share": c.share, "spread": c.spread, "word": c.word} for c in shown],
                script="overview.js",
            )
        )
