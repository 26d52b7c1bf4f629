"""``cefam explain``: which concepts a classifier sees in photographs, where, and how much each contributes."""

import json as json_
import sys
import webbrowser
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from cefam.commands._explaining import (
    LoadedArtefact,
    is_file_name,
    open_artefact,
    photographs_of,
)
from cefam.concepts.sets import ConceptSet
from cefam.errors import CefamError, ExistsError
from cefam.explanations import Explanation
from cefam.explanations.comparison import Comparison
from cefam.explanations.explanation import KINDS, check_place
from cefam.explanations.page import entry, index, page, page_names
from cefam.explanations.text import lines
from cefam.explanations.types import Findings
from cefam.io.files import write_text
from cefam.io.identity import identity
from cefam.io.passes import Pass, Unit
from cefam.towers.naming import labels_of

FOLDER = "runs/explain"
STYLES = {"title": "bold", "for": "blue", "against": "dark_orange", "absent": "dim", "": ""}


def explain(
    images: list[str],
    artefact: str | None = None,
    concepts: str | None = None,
    concept: list[str] | None = None,
    target: str | None = None,
    why_not: str | None = None,
    out: str | None = None,
    open: bool = False,  # noqa: A002
    json: str | None = None,
    top_k: int = 8,
    method: Literal["beyond", "ce-fam"] = "beyond",
    probe: str | None = None,
    every_stage: bool = False,
    num_channels: int | None = None,
    colormap: Literal["viridis", "cividis", "inferno", "grey"] = "viridis",
    resize: int | None = None,
    crop: int | None = None,
    overwrite: bool = False,
    device: str = "auto",
) -> list[Path]:
    """Explain photographs: print a summary, and write a page for each.

    Args:
        images: files, or folders of them.
        artefact: a folder of `cefam export`, or a checkpoint of `cefam fit`; null: the demo's.
        concepts: a concept set, by name or file, of which the best-scoring concepts are explained; null: the artefact's.
        concept: texts to explain, regardless of their scores. New texts need the vision-language model.
        target: class to explain, by name or index; null: the predicted class.
        why_not: another class to compare with the predicted one; also shows what would change the decision.
        out: a .html, .png, .jpg, .svg, .pdf, .json, .csv or .npz file for one photograph; a folder for several; null: runs/explain.
        open: open the page in a browser.
        json: also write the explanations to this JSON file, one per line; "-": print them instead of the summary.
        top_k: concepts per photograph.
        method: method of the regions: "beyond", one map that combines all stages (see docs/research/beyond.md); "ce-fam",
            the map of the stage with the largest association, as published.
        probe: a folder of `cefam probe`, from which "beyond" learns the direction of every concept; null: the one
            beside the artefact, or else the translator's gradient, with less exact regions.
        every_stage: compute contributions at every stage, not only at the concept's stage.
        num_channels: K, number of masked channels; null: as in training.
        colormap: initial color map of the page.
        resize: short side of a photograph before the central crop; null: 8/7 of the crop.
        crop: side of the central crop, in pixels; null: the classifier's input size.
        overwrite: replace existing files.
        device: "cpu", "cuda:0", ...; "auto": a GPU if there is one.
    """
    if concepts is not None and concept:
        raise CefamError("Name either `--concepts`, a set to choose from, or `--concept`, the texts to explain.")
    found = photographs_of(images)
    single = len(found) == 1 and (out is None or is_file_name(out))
    if is_file_name(out) and not single:
        raise CefamError(f"{out} is a file, and {len(found)} photographs are explained: name a folder.")
    place = Path(out or (Path(FOLDER) / page_names([found[0][0]])[found[0][0]] if single else FOLDER))
    _check(place, single, json, overwrite, why_not)
    if why_not is not None and (every_stage or colormap != "viridis"):
        raise CefamError("`--every_stage` and `--colormap` do not apply to `--why-not`: leave them out.")
    texts: Sequence[str] | ConceptSet | None = concept or (None if concepts is None else ConceptSet.load(concepts))
    if probe is not None and method == "ce-fam":
        raise CefamError('Only the method "beyond" takes a probe: leave `--probe` or `--method` out.')
    opened, candidates = open_artefact(artefact, texts, device, resize, crop, probe)
    wanted, other = opened.target(target), opened.target(why_not)
    count = max(top_k, len(candidates or [])) if concept else top_k
    options: dict[str, Any] = {"top_k": count, "target": wanted, "concepts": candidates}
    options |= {"num_channels": num_channels, "every_stage": every_stage, "method": method}
    if other is not None:
        compared = opened.explainer.why_not(
            opened.photograph(found[0][1]), other, count, wanted, candidates, num_channels, method
        )
        made = [compared.save(place, overwrite)]
        _tell(compared, json)
    elif single:
        done = _explained(opened, *found[0], options)
        made = [done.save(place, overwrite, **({"colormap": colormap} if place.suffix.lower() == ".html" else {}))]
        _tell(done, json)
    else:
        made = _folder(opened, found, options, place, json, colormap, overwrite)
    if json != "-":
        print(f"{made[-1]}")
    opened.hint(method)
    if open:
        webbrowser.open(made[-1].resolve().as_uri())
    return made


def _check(place: Path, single: bool, json: str | None, overwrite: bool, why_not: str | None) -> None:
    """Reject output paths that cannot be written, before the work begins."""
    if place.suffix[1:].isalpha() and not is_file_name(str(place)) and not place.is_dir():
        extensions = ", ".join(KINDS)
        raise CefamError(
            f"{place} has the extension {place.suffix!r}: a file is one of {extensions}; a folder has none."
        )
    if why_not is not None and not (single and place.suffix.lower() == ".html"):
        raise CefamError(f"`--why-not` compares two classes of one photograph in one .html file, got {place}.")
    if single:
        check_place(place, overwrite)
    elif (place / "index.html").exists() and not overwrite:
        raise ExistsError(f"{place} already holds explanations: name another folder, or pass `--overwrite true`.")
    if json not in (None, "-") and Path(json).exists() and not overwrite:
        raise ExistsError(f"{json} already exists: name another file, or pass `--overwrite true`.")


def _explained(opened: LoadedArtefact, name: str, path: Path, options: dict[str, Any]) -> Explanation:
    return opened.explainer.explain([opened.photograph(path, name)], **options)[0]


def _tell(explanation: Explanation | Comparison, json: str | None) -> None:
    """Print the summary, write JSON, or both."""
    if json is not None:
        _write_json([explanation.to_dict()], json)
    if json != "-":
        for each in (
            [explanation] if isinstance(explanation, Explanation) else [explanation.predicted, explanation.other]
        ):
            show(each)
        if isinstance(explanation, Comparison):
            print(explanation.answer, *(flip.sentence for flip in explanation.flips), sep="\n")


def _write_json(explanations: Sequence[dict[str, Any]], place: str) -> None:
    """Write explanations as JSON, one per line, to a file or the terminal."""
    whole = place != "-" or (sys.stdout.encoding or "").lower() in ("utf-8", "utf8")
    text = "".join(json_.dumps(each, ensure_ascii=not whole) + "\n" for each in explanations)
    if place == "-":
        sys.stdout.write(text)
    else:
        write_text(Path(place), text)


def show(explanation: Findings) -> None:
    """Print a summary in the terminal's width, with colors if supported."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    for line, kind in lines(explanation, console.width):
        console.print(Text(line, STYLES[kind]), no_wrap=True, overflow="crop")


def _folder(
    opened: LoadedArtefact,
    found: list[tuple[str, Path]],
    options: dict[str, Any],
    folder: Path,
    json: str | None,
    colormap: str,
    overwrite: bool,
) -> list[Path]:
    """Write one page per photograph, and an index that links them; a stopped run can be resumed."""
    form = {"colormap": colormap, "json": json is not None}
    run = identity(**opened.explainer.identity(), view=opened.view, options=options, **form)
    with Pass(folder, run, replace=overwrite) as work:
        pages = page_names([name for name, _ in found])
        classifier = opened.explainer.classifier
        truths = labels_of(classifier, [name for name, _ in found])
        units = [
            Unit(pages[name], f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}", 1,
                 partial(_write, opened, name, path, options, colormap, json is not None,
                         None if truth is None else classifier.class_name(truth)))
            for (name, path), truth in zip(found, truths, strict=True)
        ]  # fmt: skip
        entries = list(work.over(units, "explain", len(units)))
        write_text(folder / "index.html", index("Explanations", entries))
        work.forget()
    if json is not None:
        _write_json([entry["explanation"] for entry in entries], json)
    return [*(folder / unit.file for unit in units), folder / "index.html"]


def _write(
    opened: LoadedArtefact,
    name: str,
    path: Path,
    options: dict[str, Any],
    colormap: str,
    whole: bool,
    truth: str | None,
    target: Path,
) -> dict[str, Any]:
    """Write one page; return its index entry, with the whole explanation if ``whole``."""
    done = _explained(opened, name, path, options)
    write_text(target, page(done, colormap))
    return {**entry(done, quote(target.name), truth), "explanation": done.to_dict() if whole else None}
