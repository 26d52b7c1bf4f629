"""Data classes of explanations: a class and the concepts for and against it, each with its region."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from cefam.concepts.vocabularies import Concept
from cefam.explanations.photograph import Photograph
from cefam.io.files import csv_text

ALL_STAGES = "all stages"  # name of the map that combines all stages
HALF = 0.5  # default threshold of masks, as a share of the region's maximum
MASK_SIDE = 128  # longest side of stored masks, in pixels: more than twice that of a map


def run_lengths(mask: Tensor) -> dict[str, list[int]]:
    """Encode a mask (H, W) in COCO's uncompressed run-length encoding: alternating runs of 0s and 1s, column by column.

    >>> import torch
    >>> run_lengths(torch.tensor([[0, 1], [0, 1]], dtype=torch.bool))
    {'size': [2, 2], 'counts': [2, 2]}
    """
    flat = mask.cpu().numpy().astype(np.int8).flatten(order="F")
    bounds = np.concatenate([[0], np.flatnonzero(np.diff(flat)) + 1, [len(flat)]])
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if len(flat) and flat[0] else counts}


@dataclass(frozen=True, eq=False)
class ConceptExplanation:
    """One concept in one image.

    Args:
        concept: the concept.
        score: its probability, in [0, 1].
        similarity: S^t, on the VLM's scale.
        stage: index of the stage with the largest association, from 0.
        association: association of the score with each stage, L values.
        maps: R^l, one (H_l, W_l) per stage, non-negative; optionally a last one that combines all stages.
        contribution: signed share of the class probability, from masking at ``stage``; positive: in favor of the class.
            ``None`` if a stage is bypassed.
        curve: share of the class probability lost after masking 0 .. K channels.
        contributions: contributions at every stage, if requested.
        direct: cosine of the concept's importances at the last stage with the gradient of the class's log-odds. ``None`` if
            the classifier has no gradient.
        vlm_similarity: similarity according to the VLM itself, if available.
        vlm_score: probability according to the VLM itself, if available.
        evidence: evidence that the concept is in the image, on the scale of S: see :mod:`cefam.attribution.evidence`; S without
            a probe.
        present: whether there is at least as much evidence for this concept as for the average one.
        alike: words of concepts that have the same region in this image, and share the entry.
        distrust: why this concept should not be trusted, or "".
        photograph: the photograph to which the maps belong.
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
    evidence: float = 0.0
    present: bool = True
    alike: list[str] = field(default_factory=list)
    distrust: str = ""

    @property
    def name(self) -> str:
        """The word, with those of concepts that have the same region: "body, torso"."""
        return ", ".join([self.concept.word, *self.alike[:2]]) + (" ..." if len(self.alike) > 2 else "")

    @property
    def sign_unsure(self) -> bool:
        """Whether the direct effect has the other sign than the contribution."""
        return self.contribution is not None and self.direct is not None and self.contribution * self.direct < 0

    @property
    def shown(self) -> int:
        """Index of the map used as the region: the combined map if there is one, otherwise the map of ``stage``."""
        return len(self.association) if len(self.maps) > len(self.association) else self.stage

    @property
    def region(self) -> Tensor:
        """The shown map at the size of the photograph (H, W)."""
        return self.photograph.to_size(self.maps[self.shown].unsqueeze(0))[0]

    def mask(self, threshold: float = HALF, limit: int | None = None) -> Tensor:
        """Where the region exceeds ``threshold`` times its maximum (H, W), boolean; ``limit`` reduces the photograph."""
        region = self.photograph.to_size(self.maps[self.shown].unsqueeze(0), limit)[0]
        return region > threshold * max(float(region.max()), 1e-30)

    def row(self, stages: Sequence[str]) -> dict[str, Any]:
        """The concept in plain types, without its region and curve."""
        return {
            **{name: getattr(self.concept, name) for name in ("number", "word", "category")},
            **{name: getattr(self, name) for name in ("score", "similarity", "vlm_score", "vlm_similarity")},
            "stage": stages[self.stage],
            "region_of": [*stages, ALL_STAGES][self.shown],
            **{name: getattr(self, name) for name in ("association", "contribution", "contributions")},
            "direct_effect": self.direct,
            **{name: getattr(self, name) for name in ("evidence", "present", "alike", "distrust")},
        }


@dataclass(frozen=True, eq=False)
class Findings:
    """Explanation data of one image, and its forms as data; :class:`cefam.Explanation` adds text, pages and files."""

    target: int  # the explained class
    target_name: str  # its name, or its number if names are unknown
    probability: float  # its probability
    # concepts by absolute contribution, descending; by score if there is no contribution
    concepts: list[ConceptExplanation]
    photograph: Photograph = field(repr=False)  # the picture
    predicted: int  # the most probable class
    predicted_name: str  # its name
    classes: list[tuple[str, float]] = field(repr=False)  # names and probabilities of the most probable classes
    stages: list[str] = field(repr=False)  # names of the stages
    settings: dict[str, Any] = field(repr=False)  # settings of the computation, in plain types
    baseline: float = 0.0  # evidence for the average concept; concepts below it are marked absent
    warnings: list[str] = field(default_factory=list)  # warnings for the reader, as sentences

    @property
    def name(self) -> str:
        """Name of the photograph."""
        return self.photograph.name

    @property
    def map_names(self) -> list[str]:
        """Names of a concept's ``maps``, including the optional combined map."""
        return [*self.stages, ALL_STAGES]

    def __iter__(self) -> Iterator[ConceptExplanation]:
        return iter(self.concepts)

    def to_dict(self) -> dict[str, Any]:
        """All fields in plain types; regions as run-length encoded masks of the photograph reduced to 128 pixels."""
        about = ("target", "target_name", "probability", "predicted", "predicted_name")
        return {
            "format": "cefam explanation",
            "version": 1,
            "photograph": self.name,
            "size": list(self.photograph.size),
            **{name: getattr(self, name) for name in about},
            "classes": [list(entry) for entry in self.classes],
            **{name: getattr(self, name) for name in ("stages", "baseline", "settings", "warnings")},
            "region_threshold": HALF,
            "concepts": [
                {**part.row(self.stages), "curve": part.curve, "region": run_lengths(part.mask(limit=MASK_SIDE))}
                for part in self
            ],
        }

    def to_json(self) -> str:
        """:meth:`to_dict` as JSON."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False)

    def to_csv(self) -> str:
        """CSV with one line per concept; associations and, if known, contributions have one column per stage."""
        rows: list[dict[str, Any]] = []
        for part in self:
            values = part.row(self.stages)
            of_stages = {"association": values.pop("association"), "contribution": values.pop("contributions") or []}
            for kind, each in of_stages.items():
                values |= {f"{kind} {name}": value for name, value in zip(self.stages, each, strict=False)}
            rows.append({"photograph": self.name, "class": self.target_name, **values})
        return csv_text([list(rows[0]) if rows else ["photograph", "class"], *(row.values() for row in rows)])

    def arrays(self) -> dict[str, Any]:
        """NumPy arrays: ``photograph`` (H, W, 3), ``view`` (3, h, w), ``regions`` (T, H, W), ``attributions`` (T, 1, h, w)
        on the view, as Quantus expects; per concept ``numbers``, ``scores`` and ``contributions``; ``target``.
        """  # noqa: D205
        view = self.photograph.view
        on_view = [
            F.interpolate(part.maps[part.shown][None, None].float(), view.shape[-2:], mode="bilinear")[0]
            for part in self
        ]
        return {
            "photograph": self.photograph.pixels.permute(1, 2, 0).numpy(),
            "view": view.cpu().numpy(),
            "regions": np.stack([part.region.cpu().numpy() for part in self]),
            "attributions": np.stack([each.cpu().numpy() for each in on_view]),
            "numbers": np.array([part.concept.number for part in self]),
            "scores": np.array([part.score for part in self]),
            "contributions": np.array([np.nan if p.contribution is None else p.contribution for p in self]),
            "target": np.array(self.target),
        }
