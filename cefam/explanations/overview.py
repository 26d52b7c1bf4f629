"""Many explanations together: the concepts that carry a class or a set, the stages that hold them, and what goes wrong."""

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from cefam.explanations.page import as_data, environment, text_of
from cefam.explanations.text import percent, signed
from cefam.explanations.types import Findings

LEADING = 3  # concepts of a class that the table of classes names
Example = tuple[str, str, str]  # name of a photograph, picture as a data URI, what it shows


@dataclass(frozen=True)
class ConceptSummary:
    """A concept over many images.

    Args:
        number: of the concept.
        word: of it.
        category: of it.
        images: in how many it was among the explained ones.
        share: of all images.
        mean: of its contributions in them.
        spread: their standard deviation.
        stages: how often each stage held it.
        largest: photographs with its largest contributions.
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
    """What an overview needs of one explanation, in plain types."""
    return {
        "name": name,
        "label": label,
        "target": explanation.target,
        "predicted": explanation.predicted,
        "probability": explanation.probability,
        "concepts": [
            [
                part.concept.number,
                part.concept.word,
                part.concept.category,
                part.contribution,
                explanation.stages[part.stage],
            ]
            for part in explanation
        ],
    }


def leading_concepts(records: Sequence[Mapping[str, Any]], examples: int = 4) -> list[ConceptSummary]:
    """The concepts of these images, by mean absolute contribution over ALL of them, descending.

    An image in which a concept is not among the explained ones counts as 0 for the order; means and spreads are of those in which it is.
    """
    found: dict[int, list[tuple[float, str, str]]] = {}
    about: dict[int, tuple[str, str]] = {}
    for each in records:
        for number, word, category, contribution, stage in each["concepts"]:
            about[number] = (word, category)
            found.setdefault(number, []).append((contribution or 0.0, stage, each["name"]))
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
    """An overview of a set of images.

    Args:
        title: what was summarized.
        records: one per image (:func:`record`).
        class_names: by index.
        notes: what the reader should know.
    """

    title: str
    records: list[dict[str, Any]]
    class_names: dict[int, str]
    notes: list[str]

    @property
    def leading(self) -> list[ConceptSummary]:
        """Concepts over all images."""
        return leading_concepts(self.records)

    @property
    def classes(self) -> list[dict[str, Any]]:
        """A row per explained class: images, how many are right (where labels are known), and its leading concepts."""
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
    def wrong(self) -> list[dict[str, Any]]:
        """Images with a known label that were taken for another class, the surest first."""
        found = [r for r in self.records if r["label"] is not None and r["predicted"] != r["label"]]
        return [
            {
                "photograph": each["name"],
                "label": self.class_names[each["label"]],
                "predicted": self.class_names[each["predicted"]],
                "probability": percent(each["probability"]) if each["predicted"] == each["target"] else "-",
                "leading concepts": ", ".join(f"{c[1]} {signed(c[3])}" for c in each["concepts"][:LEADING]),
            }
            for each in sorted(found, key=lambda each: -each["probability"])
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {
            "format": "cefam overview",
            "version": 1,
            "title": self.title,
            "images": len(self.records),
            "notes": self.notes,
            "concepts": [asdict(each) for each in self.leading],
            "classes": self.classes,
            "wrong": self.wrong,
        }

    def to_csv(self) -> str:
        """A line per concept."""
        written = io.StringIO()
        columns = ["number", "word", "category", "images", "share", "mean", "spread", "stages"]
        writer = csv.DictWriter(written, columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        for each in self.leading:
            writer.writerow({**asdict(each), "stages": "; ".join(f"{name} {n}" for name, n in each.stages.items())})
        return written.getvalue()

    def page(self, examples: Mapping[int, Sequence[Example]], largest: int) -> str:
        """The HTML page.

        Args:
            examples: pictures by the number of their concept.
            largest: how many concepts get a card.
        """
        shown = self.leading[:largest]
        most = max((abs(each.mean) for each in shown), default=0.0) or 1.0
        cards = [
            (each, 100 * each.mean / most, [(n, Markup(p), t) for n, p, t in examples.get(each.number, [])])
            for each in shown
        ]
        return (
            environment()
            .get_template("overview.html")
            .render(
                it=self,
                cards=cards,
                data=as_data([{"mean": c.mean, "share": c.share, "spread": c.spread, "word": c.word} for c in shown]),
                script=text_of("overview.js"),
            )
        )
