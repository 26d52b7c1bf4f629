"""The identity of a training run: given at its start, written into its folder and into every checkpoint, known to W&B."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from cefam.files import write_text

FILE = "run.json"


class RunIdentity(L.Callback):
    """Carries the id of a run, and how often it was begun or resumed.

    Online, W&B resumes the run of that id. Offline it cannot: every attempt is a run of its own there, and all of them form a group;
    `cefam wandb` uploads the whole folder as one run.
    """

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}

    def begin(self, trainer: L.Trainer, checkpoint: str | None) -> None:
        """Take the id of the run that is resumed, or a new one, before any logger begins."""
        folder = trainer.log_dir
        stored = _of_checkpoint(checkpoint) or (_of_folder(Path(folder)) if folder and checkpoint else {})
        known = stored.get("id") or uuid4().hex[:8]
        self.about = {"id": known, "attempt": int(stored.get("attempt", 0)) + 1}
        if folder and trainer.is_global_zero:
            self.about["attempt"] = max(self.about["attempt"], int(_of_folder(Path(folder)).get("attempt", 0)) + 1)
            write_text(Path(folder) / FILE, json.dumps(self.about))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                offline = logger._offline or os.environ.get("WANDB_MODE") in ("offline", "dryrun")
                named = {"id": f"{known}-{self.about['attempt']}" if offline else known, "group": known}
                given = {name: value for name, value in logger._wandb_init.items() if value is not None}
                logger._wandb_init = {**logger._wandb_init, **named, **given}  # what the user named stays

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A run that had stopped early, and was killed before it ended, is not trained for one more epoch."""
        stop = trainer.early_stopping_callback
        trainer.should_stop |= stop is not None and stop.wait_count >= stop.patience

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return dict(self.about)


def identity_of(folder: Path) -> str | None:
    """The id of the run in a folder, if it has one."""
    found = _of_folder(folder).get("id")
    return found if isinstance(found, str) else None


def _of_folder(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _of_checkpoint(path: str | None) -> dict[str, Any]:
    import torch

    if not path or not Path(path).is_file():
        return {}
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return dict(stored.get("callbacks", {}).get(RunIdentity.__qualname__, {}))
