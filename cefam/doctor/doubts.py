"""Doubts: unreliable concepts of an artefact, found by ``cefam doctor`` and loaded together with the artefact."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cefam.errors import CefamWarning
from cefam.io.files import write_text
from cefam.io.identity import differing, identity
from cefam.io.reading import read_description, read_text

ADVICE = "run `cefam doctor` again, or remove it"


@dataclass(frozen=True)
class Doubts:
    """Unreliable concepts of an artefact."""

    of: dict[str, str]
    reasons: dict[str, str]
    measured: dict[str, Any] = field(default_factory=dict)
    format: str = "cefam doubts"
    version: int = 2

    def by_number(self) -> dict[int, str]:
        """Reasons by number."""
        return {int(number): reason for number, reason in self.reasons.items()}


def key_of(classifier: Any, translator: Any, concepts: Any) -> dict[str, str]:
    """Key of an artefact by content, so that doubts do not apply to a retrained artefact at the same path."""
    return identity(classifier=classifier, translator=translator, concepts=concepts)


def place_of(artefact: str | Path) -> Path:
    """Path of the doubts about an artefact: in its folder, or next to its checkpoint."""
    path = Path(artefact)
    return path / "doubts.json" if path.is_dir() else path.with_name(f"{path.name}.doubts.json")


def read(artefact: str | Path, key: dict[str, str]) -> dict[int, str]:
    """Doubts about an artefact by concept number; empty if there are none, or, with a warning, if they belong to another one."""
    place = place_of(artefact)
    if not place.is_file():
        return {}
    found = read_description(read_text(place), Doubts, place, ADVICE, lambda doubts: bool(doubts.by_number()) or True)
    if found.of == key:
        return found.by_number()
    message = f"{place} judges another artefact{differing(found.of, key)}: run `cefam doctor` again."
    warnings.warn(message, CefamWarning, stacklevel=2)
    return {}


def write(artefact: str | Path, key: dict[str, str], reasons: Mapping[int, str], measured: Mapping[str, Any]) -> Path:
    """Write the doubts about an artefact."""
    place = place_of(artefact)
    found = Doubts(key, {str(number): reason for number, reason in reasons.items()}, dict(measured))
    write_text(place, json.dumps(asdict(found), indent=1, ensure_ascii=False))
    return place
