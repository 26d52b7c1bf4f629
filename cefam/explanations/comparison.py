"""Why one class and not another: two explanations side by side, and what must be hidden for the decision to change."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from cefam.errors import CefamError, ExistsError
from cefam.explanations import maps
from cefam.explanations.page import data_uri, environment
from cefam.explanations.photograph import Photograph
from cefam.explanations.stored import plain, row
from cefam.explanations.text import percent, summary
from cefam.explanations.types import ConceptExplanation, Findings
from cefam.io.files import write_text


@dataclass(frozen=True, eq=False)
class Flip:
    """A concept's region, hidden patch by patch, the strongest first, in some steps.

    Args:
        part: the concept.
        counts: how many patches are hidden at every step, from 0 to N.
        probabilities: of the predicted and of the other class at every step (S, 2).
        patches: N, those where the region is not 0; of ``grid`` in all.
        grid: patches of the view.
        at: how many were hidden when another class came first, or ``None``.
        becomes: the class that then came first.
        view: the view with these patches hidden, or with all N (3, h, w).
        random: how many of the same number of random patches it took, on average over the draws in which it happened; ``None``: it never
            happened.
        random_share: in what share of the draws it happened.
    """

    part: ConceptExplanation
    counts: list[int]
    probabilities: Tensor = field(repr=False)
    patches: int
    grid: int
    at: int | None
    becomes: str
    view: Tensor = field(repr=False)
    random: float | None
    random_share: float

    @property
    def sentence(self) -> str:
        """What happened."""
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
            return f"{found} As many random patches never change it."
        return f"{found} Of random draws of as many patches {100 * self.random_share:.0f} % change it, after {self.random:.0f} on average."


@dataclass(frozen=True, eq=False)
class Comparison:
    """The predicted class beside another one.

    Args:
        predicted: explanation of the class that the classifier chose.
        other: explanation of the class that it did not choose, by the same concepts.
        flips: of the concepts that speak most for the one rather than the other; the one that changes the decision soonest comes first.
    """

    predicted: Findings
    other: Findings
    flips: list[Flip]

    def __str__(self) -> str:
        found = [summary(self.predicted), summary(self.other), f"Why not {self.other.target_name}:"]
        return "\n".join([*found, *(f"  {flip.sentence}" for flip in self.flips)])

    def to_dict(self) -> dict[str, Any]:
        """Everything in plain types but the pictures."""
        return {
            "predicted": plain(self.predicted),
            "other": plain(self.other),
            "flips": [
                {
                    "concept": row(flip.part, self.predicted),
                    "sentence": flip.sentence,
                    "counts": flip.counts,
                    "probabilities": flip.probabilities.tolist(),
                    "at": flip.at,
                    "becomes": flip.becomes,
                    "patches": flip.patches,
                    "grid": flip.grid,
                    "random": flip.random,
                    "random_share": flip.random_share,
                }
                for flip in self.flips
            ],
        }

    def save(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the page.

        Args:
            path: a .html file.
            overwrite: replace one that is there.

        Raises:
            ExistsError: where it exists.
            CefamError: for another extension.
        """
        place = Path(path)
        if place.suffix.lower() != ".html":
            raise CefamError(f"{place} has the extension {place.suffix!r}: a comparison is saved as .html.")
        if place.exists() and not overwrite:
            raise ExistsError(f"{place} already exists: name another file, or pass `--overwrite true`.")
        write_text(place, page(self))
        return place


def differences(predicted: Findings, other: Findings) -> list[tuple[ConceptExplanation, ConceptExplanation]]:
    """The same concept in both explanations, those first that speak most for the one rather than the other."""
    theirs = {part.concept.number: part for part in other}
    both = [(part, theirs[part.concept.number]) for part in predicted if part.concept.number in theirs]
    return sorted(both, key=lambda pair: -((pair[0].contribution or 0.0) - (pair[1].contribution or 0.0)))


def page(compared: Comparison) -> str:
    """The page of two classes side by side."""
    photograph = compared.predicted.photograph
    sides = []
    for explanation in (compared.predicted, compared.other):
        most = max((abs(part.contribution or 0.0) for part in explanation), default=0.0) or 1.0
        bars = [(part, 100 * (part.contribution or 0.0) / most) for part in explanation]
        sides.append((explanation, bars))
    flips = []
    for flip in compared.flips:
        hidden = Photograph.of_view(flip.view, photograph.name)
        flips.append((flip, Markup(maps.png(hidden.picture)), _steps(flip.probabilities.tolist())))
    return (
        environment()
        .get_template("comparison.html")
        .render(
            it=compared,
            sides=sides,
            flips=flips,
            photograph=Markup(maps.jpeg(photograph)),
            json_uri=data_uri(json.dumps(compared.to_dict(), indent=1, ensure_ascii=False), "application/json"),
        )
    )


def _steps(probabilities: list[list[float]]) -> list[str]:
    """Two curves as points in a square of 100."""
    last = max(len(probabilities) - 1, 1)
    return [
        " ".join(f"{100 * n / last:.1f},{100 - 100 * row[side]:.1f}" for n, row in enumerate(probabilities))
        for side in (0, 1)
    ]
