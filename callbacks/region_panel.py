"""RegionPanel: regions of the same photographs after every validation, for the logger."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger

from cefam.explanation import ConceptPairs
from cefam.report import figures
from cefam.report.examples import examples
from cefam.shards import open_picture
from cefam.views import View


class RegionPanel(L.Callback):
    """Draw the best-scoring concepts of fixed photographs, with the maps of all stages.

    The panel goes to W&B where that logger is on, and always to ``panels/`` in the run's folder.

    Args:
        images: paths of the photographs.
        top_k: concepts per photograph, at most.
        resize: short side before the central crop.
        crop: side of the view.
        every_n_epochs: draw after every n-th validation.
    """

    def __init__(
        self, images: list[str], top_k: int = 2, resize: int = 256, crop: int = 224, every_n_epochs: int = 1
    ) -> None:
        view = View(resize, crop)
        self.images = torch.stack([view(open_picture(Path(path), path)) for path in images])
        self.top_k, self.every_n_epochs = top_k, every_n_epochs

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and log, on the first process."""
        folder = trainer.log_dir or trainer.default_root_dir  # asks all processes: before any of them turns back
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.current_epoch % self.every_n_epochs:
            return
        model: Any = pl_module
        explainer = model.explainer
        encoding = explainer.encode(self.images.to(pl_module.device))
        concept = explainer.scores(encoding).topk(min(self.top_k, len(explainer.concepts)), dim=1).indices
        image = torch.arange(len(concept), device=concept.device).repeat_interleave(concept.shape[1])
        method = model.evaluator.methods["CE-FAM"]  # the panel shows what is measured
        pairs = ConceptPairs(image, concept.flatten())
        rows = examples(explainer, encoding, pairs, method.derivative, method.num_channels)
        sheet = figures.contact_sheet(rows, explainer.classifier.stage_names)
        path = Path(folder) / "panels" / f"epoch-{trainer.current_epoch:04d}.png"
        figures.save(sheet, path)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("regions", [str(path)])
