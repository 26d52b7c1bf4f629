"""``cefam contribution-benchmark``: compare contributions with interventional effects of concepts in drawn scenes."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cefam.errors import CefamError, ExistsError, MissingError
from cefam.interventions import benchmark
from cefam.io.files import write_text
from cefam.io.identity import identity
from cefam.io.passes import Pass, Unit
from cefam.methods import WWWRegions
from cefam.methods.base import MethodContext
from cefam.probe import Probe
from cefam.towers.loading import load_source
from cefam.trained import Trained

LOOKS = "looks.jsonl"  # log of all finished runs, beside their folders
RESULTS, TABLE = "benchmark.json", "benchmark.md"


def contribution_benchmark(
    artefact: str,
    folder: str,
    split: Literal["development", "confirmation", "final"] = "development",
    scenes: int = 60,
    probe: str | None = None,
    development: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Edit one concept of a drawn scene at a time, and compare its effect on the class with explanations.

    A stopped run can be resumed. Every finished run is logged in looks.jsonl beside the folder.

    Args:
        artefact: an artefact for a Brodenette classifier: a folder of `cefam export`, or a checkpoint.
        folder: output folder for records and table.
        split: one of three disjoint sets of scenes; thresholds are chosen only on "development".
        scenes: number of scenes.
        probe: a folder of `cefam probe` of this classifier and its VLM, for the row of WWW.
        development: folder of a development run that provides the thresholds; required for the other splits.
        overwrite: replace an existing table.
    """
    if scenes < 2:
        raise CefamError(f"scenes must be at least 2, got {scenes}.")
    target = Path(folder)
    if (target / RESULTS).exists() and not overwrite:
        raise ExistsError(f"{folder} already holds a benchmark: name another folder, or pass `--overwrite true`.")
    thresholds = _thresholds(split, development)
    trained = Trained.read(artefact)
    _check(trained)
    explainer = trained.explainer()
    control = benchmark.shuffled(explainer)
    method = None
    if probe is not None:
        vlm = load_source("vision-language model", (trained.vlm_identity or {}).get("source"))
        method = WWWRegions(MethodContext(trained, vlm, Probe.read(probe)))
    run = identity(**explainer.identity(), split=split, associations=None if method is None else method.associations)
    with Pass(target / "scenes", run, replace=overwrite) as work:
        units = [
            Unit(
                f"{index:06d}.json", f"{split}/{index}", 1, partial(_examine, explainer, control, split, index, method)
            )
            for index in range(scenes)
        ]
        entries = list(work.over(units, f"contributions, {split}", scenes))
    records = [json.loads((target / "scenes" / entry["file"]).read_text()) for entry in entries]
    rows = benchmark.rows(records, thresholds)
    text = benchmark.table(rows, records)
    about = {"split": split, "scenes": scenes, "classifier": trained.classifier.source, "thresholds": development}
    write_text(target / TABLE, text)
    write_text(target / RESULTS, json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=1))
    _note(target, about)
    print(text)
    print(target / TABLE)
    return target / TABLE


def _thresholds(split: str, development: str | None) -> dict[str, float] | None:
    if split == "development":
        return None
    if development is None:
        raise CefamError("Thresholds are fixed on development scenes: name the folder of that run as `--development`.")
    place = Path(development) / RESULTS
    if not place.is_file():
        raise MissingError(
            f"There is no benchmark in {development} (no {RESULTS}): run it on the development scenes first."
        )
    rows = json.loads(place.read_text())["rows"]
    return {f"{row['rule']}/{row['mapping']}": row["best_threshold"] for row in rows}


def _check(trained: Trained) -> None:
    """Reject artefacts with classes or concepts other than Brodenette's."""
    from cefam.brodenette import CLASSES, LABELS

    if trained.classifier.class_names != list(CLASSES):
        raise CefamError(
            "The classifier does not know Brodenette's classes: only drawn scenes can be edited. See `cefam demo`."
        )
    words = {concept.number: concept.word for concept in trained.concepts.concepts}
    missing = [label.name for label in LABELS if words.get(label.number) != label.name]
    if missing:
        raise CefamError(
            f"The artefact's concepts are not Brodenette's ({missing[0]!r} is another number or missing): train with "
            "`--model.concepts brodenette`."
        )


def _examine(
    explainer: Any, control: Any, split: str, index: int, method: WWWRegions | None, target: Path
) -> dict[str, Any]:
    write_text(target, json.dumps(benchmark.examine(explainer, control, split, index, method)))
    return {}


def _note(target: Path, about: dict[str, Any]) -> None:
    """Append a line to the log of finished runs."""
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "folder": target.name, **about})
    with (target.parent / LOOKS).open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
