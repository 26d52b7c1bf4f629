"""Lookup of requested concepts in a concept set, and validation of indices."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from cefam.concepts.sets import ConceptSet
from cefam.concepts.vocabularies import Concept
from cefam.errors import CefamError


def matched(
    known_concepts: ConceptSet, concepts: Sequence[str | int] | ConceptSet
) -> tuple[list[int], list[str | Concept]]:
    """Indices of the known concepts, and the unknown concepts; matched by word, or by word and prompt for a ConceptSet."""
    known: dict[Any, list[int]] = {}
    for index, concept in enumerate(known_concepts.concepts):
        known.setdefault(concept.word.lower(), []).append(index)
        known.setdefault((concept.word, concept.prompt), []).append(index)
    if isinstance(concepts, ConceptSet):
        wanted: list[Any] = [((concept.word, concept.prompt), concept) for concept in concepts.concepts]
    else:
        wanted = [(str(text).strip().lower(), text) for text in ([concepts] if isinstance(concepts, str) else concepts)]
    found: list[int] = []
    new: list[str | Concept] = []
    for key, each in dict.fromkeys(wanted):
        if isinstance(each, Integral):  # includes NumPy integers
            check_range("concept", torch.tensor([int(each)]), len(known_concepts))
            found.append(int(each))
        elif not isinstance(each, str | Concept):
            raise CefamError(f"A concept is named by its word or its index, got a {type(each).__name__}.")
        else:
            found += known.get(key, [])
            new += [] if key in known else [each]
    return found, new


def check_range(what: str, index: Tensor, count: int) -> None:
    """Reject indices out of range. Indices on an accelerator are not checked, to avoid a synchronization."""
    if index.device.type != "cpu":
        return
    wrong = index[(index < 0) | (index >= count)]
    if len(wrong):
        raise CefamError(f"There is no {what} {int(wrong[0])}: there are {count}, counted from 0.")
