"""``cefam demo``: the complete pipeline on drawn scenes, from drawing to the table, with the public commands."""

import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cefam.errors import CefamError
from cefam.io.files import replacing
from cefam.io.identity import identity
from cefam.io.passes import JOURNAL, Pass, Unit

BATCH = 128  # batch size of the training
SCENE = "scene.png"  # a scene of the classifier's test split, explained at the end


@dataclass(frozen=True)
class Step:
    """One command of the demo, and its output file."""

    name: str
    arguments: list[str]
    made: Path

    @property
    def command(self) -> str:
        """The command line."""
        return shlex.join(["cefam", *self.arguments])


def steps(folder: Path, scenes: int, evaluation_scenes: int, epochs: int, seed: int) -> Iterator[Step]:
    """The commands, in order."""
    counts = {"train": scenes, "val": max(scenes // 8, 1), "evaluation": evaluation_scenes}
    for split, count in counts.items():
        target = folder / "scenes" / split
        options = ["--source", split, "--count", str(count), "--folder", str(target)]
        without = [] if split == "evaluation" else ["--masks", "[]"]
        yield Step(f"draw {split}", ["prepare", "--kind", "brodenette", *options, *without], target / "manifest.json")
    for split in ("train", "val"):
        target = folder / "features" / split
        options = ["--images", str(folder / "scenes" / split), "--folder", str(target)]
        yield Step(f"features {split}", ["features", "--config", "features/demo", *options], target / "manifest.json")
    probe = ["probe", "--config", "features/demo", "--images", str(folder / "scenes" / "train")]
    yield Step("probe", [*probe, "--folder", str(folder / "probe")], folder / "probe" / "manifest.json")
    fit = ["fit", "--config", "demo", "--seed_everything", str(seed), "--trainer.max_epochs", str(epochs)]
    fit += [f"--data.init_args.{split}={folder / 'features' / split}" for split in ("train", "val")]
    fit += [f"--trainer.logger.init_args.save_dir={folder}"]
    best = folder / "fit" / "checkpoints" / "best.ckpt"
    yield Step("fit", fit, best)
    evaluate = ["evaluate", "--config", "evaluate/demo", "--model.artefact", str(best), "--model.overwrite", "true"]
    evaluate += ["--model.output", str(folder / "evaluation"), "--data.shards", str(folder / "scenes" / "evaluation")]
    evaluate += ["--model.probe", str(folder / "probe")]
    yield Step("evaluate", evaluate, folder / "evaluation" / "table.txt")
    explain = ["explain", str(folder / SCENE), "--artefact", str(best), "--overwrite", "true"]
    explain += ["--probe", str(folder / "probe")]
    yield Step("explain", [*explain, "--out", str(folder / "page.html")], folder / "page.html")


def demo(
    folder: str = "runs/demo", scenes: int = 4000, evaluation_scenes: int = 200, epochs: int = 60, seed: int = 0
) -> None:
    """Draw scenes, train a translator, compare its regions with other methods, and explain a scene, without any download.

    Finished steps are kept: a stopped demo can be resumed.

    Args:
        folder: output folder.
        scenes: number of training scenes.
        evaluation_scenes: number of scenes for the evaluation of regions.
        epochs: maximum number of epochs.
        seed: seed of the training.
    """
    _check_numbers(scenes, evaluation_scenes, epochs, seed)
    root = Path(folder)
    if root.is_dir() and any(root.iterdir()) and not (root / JOURNAL).is_file():
        raise CefamError(f"{root} holds something other than a demo: name another `--folder`, or remove it.")
    options = {"scenes": scenes, "evaluation_scenes": evaluation_scenes, "epochs": epochs, "seed": seed}
    entries = []
    with Pass(root, identity(**options)) as work:
        for step in steps(root, **options):
            made = step.made.relative_to(root).as_posix()
            entries.append(work.do(Unit(made, step.command, 1, partial(_run, step))))
    _summary(root, entries)


def _check_numbers(scenes: int, evaluation_scenes: int, epochs: int, seed: int) -> None:
    for name, value in (("scenes", scenes), ("evaluation_scenes", evaluation_scenes), ("epochs", epochs)):
        if value < 1:
            raise CefamError(f"{name} must be at least 1, got {value}.")
    if not 0 <= seed < 2**32:
        raise CefamError(f"seed must lie between 0 and 2^32 - 1, got {seed}.")
    if scenes < BATCH:
        raise CefamError(f"scenes must be at least {BATCH}, one batch, got {scenes}.")


def _draw_scene(path: Path) -> None:
    """Draw the scene to be explained."""
    from PIL import Image

    from cefam.brodenette import describe, draw

    with replacing(path) as temporary:
        Image.fromarray(draw(describe("test", 1)).image).save(temporary, "png")


def _run(step: Step, made: Path) -> dict[str, Any]:
    """Run the command of a step; return the step's name and duration."""
    from cefam.commands import main

    arguments = list(step.arguments)
    if step.name == "fit":
        arguments += _resumed(made.parent)
    if step.name == "explain":
        _draw_scene(made.parent / SCENE)
    print(f"\n$ {shlex.join(['cefam', *arguments])}", flush=True)
    start = time.monotonic()
    status = main(arguments)
    if status:
        raise SystemExit(status)  # the command has printed why
    return {"step": step.name, "seconds": round(time.monotonic() - start, 1)}


def _resumed(checkpoints: Path) -> list[str]:
    """Options that resume a stopped training; without a checkpoint, its folder is removed and training restarts."""
    if (checkpoints / "last.ckpt").is_file():
        return ["--ckpt_path", str(checkpoints / "last.ckpt")]
    shutil.rmtree(checkpoints.parent, ignore_errors=True)
    return []


def _summary(root: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Print the time of every step and the output files."""
    print(f"\n{'step':24} seconds")
    for entry in (*entries, {"step": "together", "seconds": round(sum(entry["seconds"] for entry in entries), 1)}):
        print(f"{entry['step']:24} {entry['seconds']}")
    print()
    for what, where in (
        ("table (txt, md, csv)", "evaluation/table.txt"),
        ("a line per pair", "evaluation/records.csv"),
        ("regions and masks", "evaluation/contact_sheet.png"),
        ("the page of a scene", "page.html"),
        ("training curves", "fit/metrics.csv"),
        ("the translator", "fit/checkpoints/best.ckpt"),
    ):
        print(f"{what:24} {root / where}")
    print("\nTrain again with other settings (see `cefam fit --config demo --print_config`):")
    print(
        "python train.py fit --config demo --model.similarity_weight 0 --trainer.logger.init_args.name without_similarity"
    )
