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
    by_prompt = isinstance(concepts, ConceptSet)
    for index, concept in enumerate(known_concepts.concepts):
        known.setdefault((concept.word, concept.prompt) if by_prompt else concept.word.lower(), []).append(index)
    found: list[int] = []
    new: list[str | Concept] = []
    if isinstance(concepts, ConceptSet):
        for concept in concepts.concepts:
            same = known.get((concept.word, concept.prompt), [])
            found += same
            new += [] if same else [concept]
        return found, new
    for text in dict.fromkeys([concepts] if isinstance(concepts, str) else concepts):
        if isinstance(text, Integral):  # includes NumPy integers
            check_range("concept", torch.tensor([int(text)]), len(known_concepts))
            found.append(int(text))
        elif not isinstance(text, str):
            raise CefamError(f"A concept is named by its word or its index, got a {type(text).__name__}.")
        elif text.strip().lower() in known:
            found += known[text.strip().lower()]
        else:
            new.append(text)
    return found, new


def check_range(what: str, index: Tensor, count: int) -> None:
    """Reject indices out of range. Indices on an accelerator are not checked, to avoid a synchronization."""
    if index.device.type != "cpu":
        return
    wrong = index[(index < 0) | (index >= count)]
    if len(wrong):
        raise CefamError(f"There is no {what} {int(wrong[0])}: there are {count}, counted from 0.")
