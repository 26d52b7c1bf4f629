"""Import and export associations of CLIP-Dissect (``descriptions.csv``) and WWW (pickles of words and weights)."""

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cefam.errors import CefamError
from cefam.exchange.inert import read_pickle
from cefam.io.files import csv_text, replacing, write_text
from cefam.io.reading import read_csv
from cefam.methods.associations import Associations, AssociationsAbout
from cefam.methods.base import MethodContext, chosen_stages

COLUMNS = ("layer", "unit", "description", "similarity")


def read_descriptions(path: str | Path, context: MethodContext) -> Associations:
    """Read CLIP-Dissect's ``descriptions.csv``: one description per neuron, units from 0.

    Layers that are not stages of the classifier are skipped (the published evaluation also skips conv1).
    """
    path = Path(path)
    names, words, channels = context.classifier.stage_names, _words(context), context.classifier.channels
    found: list[tuple[int, int, int, float]] = []
    for line, row in read_csv(path, COLUMNS)[1]:
        if row["layer"] not in names:
            continue
        stage = names.index(row["layer"])
        try:
            unit, score = int(row["unit"]), float(row["similarity"])
        except ValueError as error:
            raise CefamError(f"{path}, line {line}: {error}.") from error
        where = f"{path}, line {line}"
        if not 0 <= unit < channels[stage]:
            raise CefamError(f"{where}: {row['layer']} has no unit {unit}, it has {channels[stage]}.")
        found += [(stage, unit, concept, score) for concept in _concepts(row["description"], words, where)]
    if not found:
        raise CefamError(f"{path} describes no neuron of the stages {', '.join(names)}.")
    return _associations("clip_dissect", {"imported": path.name}, context, found)


def read_www(paths: Mapping[str, str | Path], context: MethodContext) -> Associations:
    """Read WWW's pickles, one per stage: lists of words and weights per neuron."""
    names, words, found = context.classifier.stage_names, _words(context), list[tuple[int, int, int, float]]()
    chosen_stages(list(paths), names)
    for name, path in paths.items():
        stage, content = names.index(name), read_pickle(path)
        try:
            texts, weights = content
            neurons = [
                (list(map(str, listed)), np.asarray(values, dtype=np.float64).ravel().tolist())
                for listed, values in zip(texts, weights, strict=True)
            ]
        except (TypeError, ValueError) as error:
            raise CefamError(f"{path} does not hold the words and weights of neurons ({error}).") from error
        if len(neurons) != context.classifier.channels[stage]:
            raise CefamError(f"{path} holds {len(neurons)} neurons, {name} has {context.classifier.channels[stage]}.")
        for unit, (listed, values) in enumerate(neurons):
            if len(listed) != len(values):
                raise CefamError(f"{path}: neuron {unit} has {len(listed)} words and {len(values)} weights.")
            for word, weight in zip(listed, values, strict=True):
                every = _concepts(word, words, f"{path}, neuron {unit}")
                found += [(stage, unit, concept, weight) for concept in every]
    return _associations("www", {"imported": [Path(path).name for path in paths.values()]}, context, found)


def _words(context: MethodContext) -> dict[str, list[int]]:
    """Concept indices by lower-case word."""
    words: dict[str, list[int]] = {}
    for index, word in enumerate(context.concepts.words):
        words.setdefault(word.lower(), []).append(index)
    return words


def _concepts(word: str, known: Mapping[str, Sequence[int]], where: str) -> Sequence[int]:
    """Indices of all concepts with this word; both programs write Broden's colors as "red-c"."""
    name = word.strip().lower()
    for candidate in (name, name.removesuffix("-c")):
        if candidate in known:
            return known[candidate]
    raise CefamError(f"{where}: {word!r} is not in the concept set: import it with the concepts it was made with.")


def _associations(
    method: str, options: dict[str, Any], context: MethodContext, found: Sequence[tuple[int, int, int, float]]
) -> Associations:
    about = AssociationsAbout(
        method, options, context.classifier.identity(), context.concepts.identity, context.concepts.words
    )
    once = {entry[:3]: entry for entry in sorted(found, key=lambda entry: entry[3])}  # a word may be listed twice
    columns = list(zip(*once.values(), strict=True)) or [(), (), (), ()]
    stage, channel, concept = (torch.tensor(column, dtype=torch.long) for column in columns[:3])
    return Associations(about, stage, channel, concept, torch.tensor(columns[3], dtype=torch.double))


def write_descriptions(associations: Associations, path: str | Path) -> None:
    """Write ``descriptions.csv``: one line per neuron and word, sorted by stage and unit."""
    names, words = associations.about.classifier["stages"], associations.about.words
    columns = (associations.stage, associations.channel, associations.concept, associations.score)
    rows = sorted(zip(*(c.tolist() for c in columns), strict=True))
    lines = [(names[stage], channel, words[concept], repr(score)) for stage, channel, concept, score in rows]
    write_text(Path(path), csv_text([COLUMNS, *dict.fromkeys(lines)]))  # concepts may share a word


def write_www(associations: Associations, folder: str | Path) -> list[Path]:
    """Write a pickle per stage, ``www_STAGE.pkl``: per neuron a list of words and an array of their weights, descending."""
    about, written = associations.about, []
    for stage, (name, count) in enumerate(zip(about.classifier["stages"], about.classifier["channels"], strict=True)):
        words: list[list[str]] = [[] for _ in range(count)]
        weights: list[list[float]] = [[] for _ in range(count)]
        rows = (associations.stage == stage).nonzero().squeeze(1)
        for row in rows[associations.score[rows].argsort(descending=True, stable=True)].tolist():
            unit = int(associations.channel[row])
            word = about.words[int(associations.concept[row])]
            if word not in words[unit]:
                words[unit].append(word)
                weights[unit].append(float(associations.score[row]))
        path = Path(folder) / f"www_{name}.pkl"
        with replacing(path) as temporary:
            temporary.write_bytes(pickle.dumps((words, [np.array(each) for each in weights]), protocol=4))
        written.append(path)
    return written
