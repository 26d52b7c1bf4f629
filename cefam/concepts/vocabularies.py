"""Reading and writing concepts: lists of words, text files, CSV files, label tables."""

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cefam.concepts.categories import DEFAULT_TEMPLATE, TEMPLATES, category_of, label_number
from cefam.errors import CefamError, CefamWarning, near
from cefam.io.files import csv_text, write_text
from cefam.io.reading import read_csv, read_text

COLUMNS = ("word", "name", "number", "category", "prompt")
BRODEN_COLUMNS = ("frequency", "coverage", "syns")  # columns of Broden's label.csv that are not used


@dataclass(frozen=True)
class Concept:
    """One concept: number (its identity), word, categories (the first is the primary one) and prompt for the VLM."""

    number: int
    word: str
    categories: tuple[str, ...]
    prompt: str

    @property
    def category(self) -> str:
        """The primary category: the first one, as in the published program."""
        return self.categories[0]


def concepts_of(words: Iterable[str], template: str, category: str, start: int = 1) -> Iterator[Concept]:
    """Concepts from words, numbered from ``start``; blank words are skipped."""
    if "{}" not in template:
        raise CefamError(f"A template needs '{{}}' where the word goes, got {template!r}.")
    clean = (word.strip() for word in words if word.strip())
    return (Concept(start + i, word, (category,), template.format(word)) for i, word in enumerate(clean))


def read_concepts(path: Path) -> list[Concept]:
    """Concepts from a .txt file (a word per line) or a .csv file; see :meth:`cefam.ConceptSet.from_file`."""
    if path.suffix.lower() == ".txt":
        lines = (_clean(line, ()) for line in read_text(path).splitlines() if not line.lstrip().startswith("#"))
        concepts = list(concepts_of(lines, DEFAULT_TEMPLATE, "concept"))
    elif path.suffix.lower() == ".csv":
        concepts = _from_table(path)
    else:
        raise CefamError(f"{path} is not a file of concepts: it must be .txt (a word per line) or .csv.")
    warn_of_equal_prompts(concepts, str(path))
    return concepts


def warn_of_equal_prompts(concepts: Sequence[Concept], where: str) -> None:
    """Warn about concepts with equal prompts, which always get equal scores."""
    counts = Counter(concept.prompt.strip() for concept in concepts)
    equal = [prompt for prompt, count in counts.items() if count > 1]
    if equal:
        warnings.warn(
            f"{where}: {len(equal)} prompt(s) belong to several concepts, which then share one score (as "
            f"{', '.join(map(repr, equal[:3]))}): give them different prompts, or remove all but one.",
            CefamWarning,
            stacklevel=4,
        )


def _from_table(path: Path) -> list[Concept]:
    columns, rows = read_csv(path, comments=True)
    if not columns & {"word", "name"}:
        raise CefamError(f"{path} has columns {sorted(columns)}, but needs one called 'word' or 'name'.")
    unknown = sorted(columns - {*COLUMNS, *BRODEN_COLUMNS})
    if unknown:
        hints = "".join(near(name, COLUMNS) for name in unknown)
        warnings.warn(
            f"{path}: the column(s) {', '.join(map(repr, unknown))} are not used.{hints}", CefamWarning, stacklevel=4
        )
    concepts = []
    for position, (line, row) in enumerate(rows, start=1):
        try:
            concepts.append(_from_row(row, position))
        except CefamError as error:
            raise CefamError(f"{path}, line {line}: {error}") from error
    return concepts


def _from_row(row: dict[str, str], position: int) -> Concept:
    name = (row.get("word") or row.get("name") or "").strip()
    if not name:
        raise CefamError("the word is empty.")
    number = label_number(row.get("number") or position, name)
    categories = tuple(_categories(row.get("category") or "")) or ("concept",)
    word = _clean(name, categories)
    prompt = (row.get("prompt") or "").strip() or TEMPLATES.get(categories[0], DEFAULT_TEMPLATE).format(word)
    return Concept(number, word, categories, prompt)


def label_word(label: Mapping[str, Any]) -> str:
    """The word of a label in a manifest of shards (number, name, category)."""
    return _clean(label["name"], _categories(label["category"]))


def _categories(text: str) -> list[str]:
    """Categories separated by ``;``; Broden appends the number of masks in brackets to each."""
    return [category_of(part.split("(")[0]) for part in text.split(";") if part.split("(")[0].strip()]


def _clean(name: str, categories: Sequence[str]) -> str:
    """The word of a label: Broden marks colors with "-c" and scenes with "-s", and joins words with "_"."""
    for category, suffix in (("color", "-c"), ("scene", "-s")):
        if category in categories:
            name = name.removesuffix(suffix)
    return name.replace("_", " ")


def write_labels(path: Path, labels: Sequence[Mapping[str, Any]]) -> None:
    """Write labels to a CSV file (number, name, category) that can be loaded as a concept set."""
    names = ("number", "name", "category")
    write_text(path, csv_text([names, *([label[name] for name in names] for label in labels)]))
