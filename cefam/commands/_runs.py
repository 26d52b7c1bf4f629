"""The id of a training run: written into its folder and into every checkpoint, and the id of its W&B run."""

import json
import os
from pathlib import Path
from typing import Any
from uuid import uuid4

import lightning as L
from lightning.pytorch.loggers import WandbLogger

from cefam.io.files import write_text

FILE = "run_id.json"
SHOWN = [f"regions/{protocol}/{metric}/mean" for protocol in ("top1", "oracle") for metric in ("nra", "hit")]


class RunIdentity(L.Callback):
    """Gives a resumed run the id of the original run, so that W&B shows a single run.

    Offline, every attempt is written to a separate folder with the same id, and ``wandb sync`` merges them.
    """

    def __init__(self) -> None:
        self.id = ""

    def begin(self, trainer: L.Trainer, checkpoint: str | None) -> None:
        """Set the id of the resumed run, or a new one, before any logger starts."""
        folder = trainer.log_dir
        stored = _of_checkpoint(checkpoint) or (id_of(Path(folder)) if folder and checkpoint else None)
        self.id = stored or uuid4().hex[:8]
        if folder and trainer.is_global_zero:
            write_text(Path(folder) / FILE, json.dumps({"id": self.id}))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                given = {name: value for name, value in logger._wandb_init.items() if value is not None}
                logger._wandb_init = {**logger._wandb_init, "id": self.id, **given}  # the user's own id has precedence

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Print the command that uploads an offline W&B run."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(logger, WandbLogger) and (
                logger._offline or os.environ.get("WANDB_MODE") in ("offline", "dryrun")
            ):
                found = Path(logger.save_dir or ".") / "wandb" / f"offline-run-*-{logger.version}"
                print(f"Upload the run, with all its attempts: wandb sync {found}")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop a resumed run that had met its early-stopping criterion; keep W&B's first view to a dozen series."""
        for logger in trainer.loggers if trainer.is_global_zero else ():
            if isinstance(
                logger, WandbLogger
            ):  # by category they are measured all the same, and can be added to a panel
                for name in ("regions/*", "val/concept_correlation/*"):
                    logger.experiment.define_metric(name, hidden=True)
                for name in SHOWN:
                    logger.experiment.define_metric(name, hidden=False)
        stop = trainer.early_stopping_callback
        trainer.should_stop |= stop is not None and stop.wait_count >= stop.patience

    def state_dict(self) -> dict[str, Any]:
        """The state stored in checkpoints."""
        return {"id": self.id}


def id_of(folder: Path) -> str | None:
    """The id of the run in a folder, if it has one."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))["id"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None


def _of_checkpoint(path: str | None) -> str | None:
    import torch

    if not path or not Path(path).is_file():
        return None
    stored = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    found = stored.get("callbacks", {}).get(RunIdentity.__qualname__, {}).get("id")
    return found if isinstance(found, str) else None
