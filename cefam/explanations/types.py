"""What an explanation holds: a class, and the concepts that speak for or against it, each with its region. Data only."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from cefam.concepts.vocabularies import Concept
from cefam.explanations.photograph import Photograph
from cefam.explanations.rle import Rle, run_lengths

ALL_STAGES = "all stages"  # name of the map that is made of all stages together
HALF = 0.5  # a region's pixels are those above this share of its largest value, where a mask is wanted


@dataclass(frozen=True, eq=False)
class ConceptExplanation:
    """One concept in one image.

    Args:
        concept: what it is.
        score: its probability, in [0, 1].
        similarity: S^t, as the VLM scales it.
        stage: from 0, the one with the largest association.
        association: L values, how much each stage matters to the score.
        maps: R^l, one (H_l, W_l) per stage, not negative; a last one of all stages together, where a method made it.
        contribution: signed share of the class probability, masked at ``stage``; positive: the concept speaks for the class.
            ``None`` where a stage is by-passed.
        curve: share of the class probability that is lost after 0 .. K masked channels.
        contributions: at every stage, where that was asked for.
        direct: cosine of the concept's importances at the last stage with the gradient of the class's log-odds: of the rules tried its
            sign agrees best with what edits of concepts do. ``None`` where the classifier has no gradient.
        vlm_similarity: what the VLM itself says, where it is at hand.
        vlm_score: its probability.
        present: whether the image is at least as similar to this concept as to the average one.
        distrust: why this concept should not be trusted, or "".
        photograph: that the maps belong to.
    """

    concept: Concept
    score: float
    similarity: float
    stage: int
    association: list[float]
    maps: list[Tensor] = field(repr=False)
    contribution: float | None
    curve: list[float] = field(repr=False)
    photograph: Photograph = field(repr=False)
    contributions: list[float] | None = None
    direct: float | None = None
    vlm_similarity: float | None = None
    vlm_score: float | None = None
    present: bool = True
    distrust: str = ""

    @property
    def shown(self) -> int:
        """Which of the maps is the region: that of all stages, where there is one, or that of the chosen stage."""
        return len(self.association) if len(self.maps) > len(self.association) else self.stage

    @property
    def region(self) -> Tensor:
        """The shown map at the size of the photograph (H, W)."""
        return self.photograph.to_size(self.maps[self.shown].unsqueeze(0))[0]

    def mask(self, threshold: float = HALF, limit: int | None = None) -> Tensor:
        """Where the region is above a share of its largest value: (H, W), boolean; ``limit``: of a reduced photograph."""
        region = self.photograph.to_size(self.maps[self.shown].unsqueeze(0), limit)[0]
        return region > threshold * max(float(region.max()), 1e-30)

    def rle(self, threshold: float = HALF, limit: int | None = None) -> Rle:
        """:meth:`mask` in COCO's uncompressed run-length encoding; its "size" says how large the mask is."""
        return run_lengths(self.mask(threshold, limit))


@dataclass(frozen=True, eq=False)
class Findings:
    """What is found in one image; :class:`cefam.Explanation` adds how it is shown.

    Args:
        target: the explained class.
        target_name: its name, or its number where names are not known.
        probability: of that class.
        concepts: by absolute contribution, descending; where there is none, by score.
        photograph: the picture.
        predicted: the most probable class.
        predicted_name: its name.
        classes: names and probabilities of the most probable classes.
        stages: names of the stages.
        settings: how it was computed, in plain types.
        baseline: similarity of the image with the average concept: what is below it is called absent.
        warnings: what the reader should know, in sentences.
    """

    target: int
    target_name: str
    probability: float
    concepts: list[ConceptExplanation]
    photograph: Photograph = field(repr=False)
    predicted: int
    predicted_name: str
    classes: list[tuple[str, float]] = field(repr=False)
    stages: list[str] = field(repr=False)
    settings: dict[str, Any] = field(repr=False)
    baseline: float = 0.0
    warnings: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Name of the photograph."""
        return self.photograph.name

    @property
    def map_names(self) -> list[str]:
        """Of the entries of a concept's ``maps``, and of the one that may stand behind them."""
        return [*self.stages, ALL_STAGES]

    def __iter__(self) -> Iterator[ConceptExplanation]:
        return iter(self.concepts)
