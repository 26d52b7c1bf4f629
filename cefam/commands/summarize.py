"""``cefam summarize``: the most important concepts of a class or of a set of photographs."""

import json
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cefam.commands._explaining import LoadedArtefact, open_artefact, photographs_of
from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError, ExistsError
from cefam.explanations import maps
from cefam.explanations.overview import Example, Overview, record
from cefam.explanations.page import CARD, where
from cefam.explanations.spotlight import spotlight
from cefam.explanations.text import signed
from cefam.io.files import write_text
from cefam.io.identity import identity
from cefam.io.passes import Pass, Unit
from cefam.towers.naming import labels_of

BATCH = 8  # photographs per unit of work
CARDS = 24  # concepts with pictures
PARTS = "parts"  # folder for intermediate results


def summarize(
    images: list[str],
    artefact: str | None = None,
    concepts: str | None = None,
    target: str | None = None,
    out: str = "runs/summary",
    top_k: int = 8,
    method: Literal["beyond", "ce-fam"] = "beyond",
    probe: str | None = None,
    num_channels: int | None = None,
    resize: int | None = None,
    crop: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> Path:
    """Summarize the explanations of many photographs. A stopped run can be resumed.

    Labels come from folders that are named like classes or, if there is one folder per class, from the folders' order.

    Args:
        images: files, or folders of them.
        artefact: a folder of `cefam export`, or a checkpoint of `cefam fit`; null: the demo's.
        concepts: a concept set, by name or file, of which the best-scoring concepts are explained; null: the artefact's.
        target: class to explain in all photographs, by name or index; null: the predicted class of each.
        out: output folder for summary.html, summary.csv and summary.json.
        top_k: concepts per photograph.
        method: of the regions in the pictures, as for `cefam explain`.
        probe: a folder of `cefam probe`; null: the one beside the artefact.
        num_channels: K, number of masked channels; null: as in training.
        resize: short side of a photograph before the central crop; null: 8/7 of the crop.
        crop: side of the central crop, in pixels; null: the classifier's input size.
        overwrite: replace an existing summary.
        device: "cpu", "cuda:0", ...; "auto": a GPU if there is one.
    """
    found, folder = photographs_of(images), Path(out)
    if (folder / "summary.html").exists() and not overwrite:
        raise ExistsError(f"{folder} already holds a summary: name another folder, or pass `--overwrite true`.")
    if top_k < 1:
        raise CefamError(f"top_k must be at least 1, got {top_k}.")
    texts = None if concepts is None else ConceptSet.load(concepts)
    opened, candidates = open_artefact(artefact, texts, device, resize, crop, probe)
    wanted = opened.target(target)
    labels = labels_of(opened.explainer.classifier, [name for name, _ in found])
    options: dict[str, Any] = {"top_k": top_k, "target": wanted, "concepts": candidates, "num_channels": num_channels}
    options |= {"method": method}
    records = _records(opened, found, labels, options, folder, overwrite)
    classifier = opened.explainer.classifier
    names = {index: classifier.class_name(index) for index in range(classifier.num_classes)}
    title = "All photographs" if wanted is None else f"Most important concepts of {names[wanted]}"
    overview = Overview(title, records, names, opened.explainer.doubts)
    pictures = _pictures(opened, overview, dict(found), options)
    write_text(folder / "summary.json", json.dumps(overview.to_dict(), indent=1, ensure_ascii=False))
    write_text(folder / "summary.csv", overview.to_csv())
    write_text(folder / "summary.html", overview.page(pictures, CARDS))
    _print(overview)
    print(folder / "summary.html")
    return folder / "summary.html"


def _records(
    opened: LoadedArtefact,
    found: list[tuple[str, Path]],
    labels: list[int | None],
    options: dict[str, Any],
    folder: Path,
    overwrite: bool,
) -> list[dict[str, Any]]:
    """A record per photograph."""
    run = identity(**opened.explainer.identity(), view=opened.view, options=options)
    with Pass(folder / PARTS, run, replace=overwrite) as work:
        units = []
        for start in range(0, len(found), BATCH):
            part, known = found[start : start + BATCH], labels[start : start + BATCH]
            digest = json.dumps([[name, path.stat().st_size, path.stat().st_mtime_ns] for name, path in part])
            write = partial(_explain, opened, part, known, options)
            units.append(Unit(f"{start:08d}.json", digest, len(part), write))
        records: list[dict[str, Any]] = []
        for entry in work.over(units, "summarize", len(found)):
            records += json.loads((folder / PARTS / entry["file"]).read_text())
        return records


def _explain(
    opened: LoadedArtefact,
    part: list[tuple[str, Path]],
    labels: list[int | None],
    options: dict[str, Any],
    target: Path,
) -> dict[str, Any]:
    photographs = [opened.photograph(path, name) for name, path in part]
    done = opened.explainer.explain(photographs, **options)
    records = [record(name, each, label) for (name, _), each, label in zip(part, done, labels, strict=True)]
    write_text(target, json.dumps(records))
    return {}


def _pictures(
    opened: LoadedArtefact, overview: Overview, paths: dict[str, Path], options: dict[str, Any]
) -> dict[int, list[Example]]:
    """Regions of the leading concepts in the photographs where their contribution was largest."""
    numbers = {concept.number: index for index, concept in enumerate(opened.explainer.concepts.concepts)}
    found: dict[int, list[Example]] = {}
    for concept in overview.leading[:CARDS]:
        photographs = [opened.photograph(paths[name], name) for name in concept.largest]
        chosen = {**options, "concepts": [numbers[concept.number]], "top_k": 1}
        for explanation in opened.explainer.explain(photographs, **chosen):
            part = explanation.concepts[0]
            text = f"{explanation.name} {signed(part.contribution)}"
            picture = maps.jpeg(spotlight(explanation.photograph, part, CARD))
            found.setdefault(concept.number, []).append((text, picture, f"{concept.word}: {where(part)}"))
    return found


def _print(overview: Overview) -> None:
    """Print the leading concepts."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title=overview.title, box=None)
    for name in ("concept", "mean contribution", "spread", "in", "stage"):
        table.add_column(name, justify="left" if name in ("concept", "stage") else "right")
    for each in overview.leading[:10]:
        stage = next(iter(each.stages))
        table.add_row(each.word, signed(each.mean), f"{each.spread:.3f}", f"{100 * each.share:.0f} %", stage)
    Console(highlight=False).print(table)
