"""Comparison of two classes: both explanations side by side, and what must be hidden to change the decision."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from cefam.errors import CefamError
from cefam.explanations import maps
from cefam.explanations.explanation import check_place
from cefam.explanations.page import data_uri, environment
from cefam.explanations.photograph import Photograph
from cefam.explanations.text import percent, summary
from cefam.explanations.types import ConceptExplanation, Findings
from cefam.io.files import write_text

FLIP = ("sentence", "counts", "at", "becomes", "patches", "grid", "random", "random_share")  # fields in plain types


@dataclass(frozen=True, eq=False)
class Flip:
    """Result of hiding a concept's region patch by patch, strongest patches first."""

    part: ConceptExplanation  # the concept
    counts: list[int]  # number of hidden patches at every step, from 0 to N
    # probabilities of the predicted and of the other class at every step (S, 2)
    probabilities: Tensor = field(repr=False)
    patches: int  # N, the number of patches where the region is not 0
    grid: int  # number of patches of the view
    at: int | None  # number of hidden patches at which the decision changes; `None` if it never does
    becomes: str  # the new predicted class
    # the view (3, h, w) with `at` patches hidden, or with all N if the decision never changes
    view: Tensor = field(repr=False)
    # mean number of random patches that change the decision, over the draws in which it changes; `None`: in none
    random: float | None
    random_share: float  # share of the random draws in which the decision changes

    @property
    def sentence(self) -> str:
        """The result in words."""
        word = self.part.concept.word
        last = -1 if self.at is None else self.counts.index(self.at)
        before, after = (percent(float(self.probabilities[step, 0])) for step in (0, last))
        if not self.patches:
            return f"{word}: the region is empty, nothing can be hidden."
        if self.at is None:
            hidden = f"its whole region ({self.patches} of {self.grid} patches)"
            found = f"{word}: hiding {hidden} does not change the decision ({before} -> {after})."
        else:
            found = f"{word}: with {self.at} of {self.grid} patches hidden the decision becomes {self.becomes} ({before} -> {after})."
        if self.random is None:
            return f"{found} For comparison, hiding as many patches at random places never changes it."
        return (
            f"{found} For comparison, hiding patches at random places changes it in {100 * self.random_share:.0f} % of the trials, "
            f"after {self.random:.0f} patches on average."
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """Explanations of the predicted class and of another class, with the same concepts.

    ``flips`` are of the concepts that most favor the predicted class; the one that changes the decision with the fewest hidden
    patches comes first.
    """

    predicted: Findings
    other: Findings
    flips: list[Flip]

    @property
    def answer(self) -> str:
        """The answer to "why not the other class" in one sentence."""
        wanted, changed = self.other.target_name, [flip for flip in self.flips if flip.at is not None]
        if not self.flips:
            return f"No concept contributes to {self.predicted.target_name}, so nothing was hidden."
        for flip in changed:
            if flip.becomes == wanted:
                return f"Hiding the region of {flip.part.concept.word} makes it {wanted}."
        became = " or ".join(dict.fromkeys(flip.becomes for flip in changed))
        if not became:
            return f"Nothing that was hidden makes it {wanted}; it stays {self.predicted.target_name}."
        return f"Nothing that was hidden makes it {wanted}; it became {became}."

    def __str__(self) -> str:
        found = [summary(self.predicted), summary(self.other), f"Why not {self.other.target_name}? {self.answer}"]
        return "\n".join([*found, *(f"  {flip.sentence}" for flip in self.flips)])

    def to_dict(self) -> dict[str, Any]:
        """All fields except the pictures, in plain types."""
        return {
            "predicted": self.predicted.to_dict(),
            "other": self.other.to_dict(),
            "answer": self.answer,
            "flips": [
                {
                    "concept": flip.part.row(self.predicted.stages),
                    **{name: getattr(flip, name) for name in FLIP},
                    "probabilities": flip.probabilities.tolist(),
                }
                for flip in self.flips
            ],
        }

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the page."""
        place = Path(path)
        if place.suffix.lower() != ".html":
            raise CefamError(f"{place} has the extension {place.suffix!r}: a comparison is saved as .html.")
        check_place(place, overwrite)
        write_text(place, page(self))
        return place


def differences(predicted: Findings, other: Findings) -> list[tuple[ConceptExplanation, ConceptExplanation]]:
    """Concepts present in both explanations, sorted by contribution to ``predicted`` minus ``other``, descending."""
    theirs = {part.concept.number: part for part in other}
    both = [(part, theirs[part.concept.number]) for part in predicted if part.concept.number in theirs]
    return sorted(both, key=lambda pair: -((pair[0].contribution or 0.0) - (pair[1].contribution or 0.0)))


def page(compared: Comparison) -> str:
    """Render the page with both classes side by side."""
    photograph = compared.predicted.photograph
    sides = []
    for explanation in (compared.predicted, compared.other):
        most = max((abs(part.contribution or 0.0) for part in explanation), default=0.0) or 1.0
        bars = [(part, 100 * (part.contribution or 0.0) / most) for part in explanation]
        sides.append((explanation, bars))
    flips = []
    for flip in compared.flips:
        hidden = Photograph.of_view(flip.view, photograph.name)
        flips.append((flip, maps.png(hidden.picture), _steps(flip.probabilities.tolist())))
    return (
        environment()
        .get_template("comparison.html")
        .render(
            it=compared,
            sides=sides,
            flips=flips,
            photograph=maps.jpeg(photograph.picture),
            json_uri=data_uri(json.dumps(compared.to_dict(), indent=1, ensure_ascii=False), "application/json"),
        )
    )


def _steps(probabilities: list[list[float]]) -> list[str]:
    """The two probability curves as SVG points in a 100 x 100 square."""
    last = max(len(probabilities) - 1, 1)
    return [
        " ".join(f"{100 * n / last:.1f},{100 - 100 * row[side]:.1f}" for n, row in enumerate(probabilities))
        for side in (0, 1)
    ]
