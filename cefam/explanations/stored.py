"""Serialization of explanations: plain types, JSON, CSV, NumPy arrays."""

import csv
import io
import json
from typing import Any

import numpy as np
import torch.nn.functional as F

from cefam.explanations.types import HALF, ConceptExplanation, Findings

MASK_SIDE = 128  # longest side of stored masks, in pixels: more than twice that of a map
FORMAT, VERSION = "cefam explanation", 1


def plain(explanation: Findings) -> dict[str, Any]:
    """An explanation in plain types; see :meth:`Explanation.to_dict`."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "photograph": explanation.name,
        "size": list(explanation.photograph.size),
        "target": explanation.target,
        "target_name": explanation.target_name,
        "probability": explanation.probability,
        "predicted": explanation.predicted,
        "predicted_name": explanation.predicted_name,
        "classes": [list(entry) for entry in explanation.classes],
        "stages": explanation.stages,
        "baseline": explanation.baseline,
        "settings": explanation.settings,
        "warnings": explanation.warnings,
        "region_threshold": HALF,
        "concepts": [
            {**row(part, explanation), "curve": part.curve, "region": part.rle(limit=MASK_SIDE)} for part in explanation
        ],
    }


def row(part: ConceptExplanation, explanation: Findings) -> dict[str, Any]:
    """A concept in plain types, without its region and curve."""
    return {
        "number": part.concept.number,
        "word": part.concept.word,
        "category": part.concept.category,
        "score": part.score,
        "similarity": part.similarity,
        "vlm_score": part.vlm_score,
        "vlm_similarity": part.vlm_similarity,
        "stage": explanation.stages[part.stage],
        "region_of": explanation.map_names[part.shown],
        "association": part.association,
        "contribution": part.contribution,
        "contributions": part.contributions,
        "direct_effect": part.direct,
        "evidence": part.evidence,
        "present": part.present,
        "alike": part.alike,
        "distrust": part.distrust,
    }


def as_json(explanation: Findings) -> str:
    """The explanation as JSON."""
    return json.dumps(plain(explanation), indent=1, ensure_ascii=False)


def as_csv(explanation: Findings) -> str:
    """CSV with one line per concept; associations and, if known, contributions have one column per stage."""
    written = io.StringIO()
    rows = []
    for part in explanation:
        values = row(part, explanation)
        each = values.pop("contributions") or []
        values |= zip((f"association {name}" for name in explanation.stages), values.pop("association"), strict=True)
        values |= zip((f"contribution {name}" for name in explanation.stages), each, strict=False)
        rows.append({"photograph": explanation.name, "class": explanation.target_name, **values})
    columns = list(rows[0]) if rows else ["photograph", "class"]
    writer = csv.DictWriter(written, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def arrays(explanation: Findings) -> dict[str, np.ndarray]:
    """NumPy arrays; see :meth:`Explanation.arrays`."""
    photograph = explanation.photograph
    size = (photograph.view.shape[-2], photograph.view.shape[-1])
    on_view = [
        F.interpolate(part.maps[part.shown][None, None].float(), size, mode="bilinear", align_corners=False)[0]
        for part in explanation
    ]
    return {
        "photograph": photograph.pixels.permute(1, 2, 0).numpy(),
        "view": photograph.view.cpu().numpy(),
        "regions": np.stack([part.region.cpu().numpy() for part in explanation]),
        "attributions": np.stack([each.cpu().numpy() for each in on_view]),
        "numbers": np.array([part.concept.number for part in explanation]),
        "scores": np.array([part.score for part in explanation]),
        "contributions": np.array([np.nan if p.contribution is None else p.contribution for p in explanation]),
        "target": np.array(explanation.target),
    }
