"""Training from features in Python, with the defaults of ``cefam fit``."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from cefam.datamodules import FeaturesData
from cefam.training.module import CEFAM


def fit(module: CEFAM, data: FeaturesData, folder: Path, max_epochs: int, device: torch.device) -> dict[str, float]:
    """Train until the validation loss has not improved for ten epochs; a stopped training resumes.

    Args:
        module: the translator with its towers.
        data: feature caches.
        folder: for ``checkpoints/best.ckpt``, ``checkpoints/last.ckpt`` and ``metrics.csv``.
        max_epochs: at most.
        device: of the training.

    Returns:
        The values of the best epoch that were logged, by name.
    """
    checkpoints = folder / "checkpoints"
    best = ModelCheckpoint(checkpoints, "best", monitor="val/loss", auto_insert_metric_name=False)
    last = ModelCheckpoint(checkpoints, "last", enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=max_epochs,
        accelerator="gpu" if device.type == "cuda" else device.type,
        devices=[device.index or 0] if device.type == "cuda" else 1,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=[EarlyStopping("val/loss", patience=10), best, last],
        inference_mode=False,
        enable_model_summary=False,
        log_every_n_steps=1,  # a study has few batches
    )
    stopped = checkpoints / "last.ckpt"
    trainer.fit(module, data, ckpt_path=str(stopped) if stopped.is_file() else None)
    measured = trainer.validate(module, data, ckpt_path=best.best_model_path or str(stopped), verbose=False)[0]
    return {name: float(value) for name, value in measured.items()}
