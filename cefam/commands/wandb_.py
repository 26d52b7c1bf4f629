"""``cefam wandb``: the folder of a training run -> one run on W&B, from a machine that reaches it."""

import csv
import os
from collections.abc import Iterator
from pathlib import Path

import yaml

from cefam.commands._options import call
from cefam.commands._runs import identity_of
from cefam.errors import CefamError, MissingError

STEP = "trainer/global_step"  # as Lightning's own logger calls it


def upload(runs: list[str], project: str = "cefam") -> None:
    """Upload the folders of runs, each as one run on W&B: the numbers of all its attempts, its config and its panels.

    W&B does not resume offline runs; the CSV log of the folder is whole, whatever was killed in between. Uploading again replaces the run.

    Args:
        runs: folders of `cefam fit`.
        project: on W&B.
    """
    every = {Path(run): list(rows_of(Path(run))) for run in runs}  # all can be read before any is sent
    for folder, rows in every.items():
        _upload(folder, rows, project)


def _upload(folder: Path, rows: list[dict[str, float]], project: str) -> None:
    import wandb

    config = folder / "config.yaml"
    offline = os.environ.get("WANDB_MODE") in ("offline", "dryrun")
    with wandb.init(
        project=project, name=folder.name, id=identity_of(folder), dir=str(folder),
        config=yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else None,
    ) as begun:  # fmt: skip
        begun.define_metric(STEP)
        begun.define_metric("*", step_metric=STEP, step_sync=True)
        panels = {int(path.stem.rpartition("-")[2]): path for path in (folder / "panels").glob("epoch-*.png")}
        for row in rows:
            step = int(row.pop("step"))
            panel = panels.pop(int(row.get("epoch", -1)), None) if "val/loss" in row else None
            pictures = {"regions": wandb.Image(str(panel))} if panel else {}
            begun.log({STEP: step, **row, **pictures})
    where = "an offline run was written below it: send it with `wandb sync`" if offline else "uploaded"
    print(f"{folder}: {len(rows)} rows of numbers; {where}.")


def rows_of(folder: Path) -> Iterator[dict[str, float]]:
    """What a run has logged, in order: of an attempt that was resumed, what came before the next one began.

    Raises:
        MissingError: where the folder has no log.
        CefamError: where the log cannot be read.
    """
    logs = sorted(folder.glob("metrics-until-*.csv"), key=lambda path: int(path.stem.rpartition("-")[2]))
    logs += [folder / "metrics.csv"]
    if not logs[-1].is_file():
        raise MissingError(f"{folder} holds no log of a run (no metrics.csv): name the folder of a `cefam fit`.")
    attempts = [_read(path) for path in logs]
    for number, attempt in enumerate(attempts):
        later = [rows[0]["step"] for rows in attempts[number + 1 :] if rows]
        yield from (row for row in attempt if not later or row["step"] < min(later))


def _read(path: Path) -> list[dict[str, float]]:
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(lines)]
    except (ValueError, TypeError, AttributeError) as error:
        raise CefamError(f"{path} is not the log of a run ({error}).") from error


def run(arguments: list[str]) -> None:
    """Run the verb with these options."""
    call("wandb", upload, arguments, positional="runs")
