"""RegionPanel: draws the regions of fixed photographs after validation."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from PIL import Image

from cefam.errors import CefamError
from cefam.explanations import Photograph
from cefam.explanations.photograph import stacked
from cefam.images.views import EvaluationView
from cefam.io.files import csv_text, write_text
from cefam.methods import Activated
from cefam.pairs import ConceptPairs
from cefam.report.contact_sheet import write_contact_sheet
from cefam.report.examples import Candidate, Example, to_image

COLUMNS = ["photograph", "class", "probability", "concept", "score", "stage", "contribution"]
NUMBERS = "Above each map: its stage, and the association of the score with it. Red: the stage with the largest one."
TABLE = 8  # concepts per photograph in the table


class RegionPanel(L.Callback):
    """Draw the top-scoring concepts of fixed photographs, with the maps of all stages sorted by association.

    The panel is saved to ``panels/`` in the run's folder, and logged to W&B and TensorBoard, if enabled, at the trainer's step.
    At the end of training, explanations of the photographs are logged as a table and saved as ``explanations.csv``.

    Args:
        images: paths of the photographs.
        top_k: maximum number of concepts per photograph.
        resize: short side before the central crop.
        crop: side of the view.
        every_n_epochs: draw after every n-th validation.
    """

    def __init__(
        self, images: list[str], top_k: int = 2, resize: int = 256, crop: int = 224, every_n_epochs: int = 1
    ) -> None:
        if every_n_epochs < 1 or top_k < 1:
            raise CefamError(f"every_n_epochs and top_k must be at least 1, got {every_n_epochs} and {top_k}.")
        view = EvaluationView(resize, crop)
        self.photographs = [Photograph.open(path, view) for path in images]
        self.images = stacked(self.photographs)
        self.top_k, self.every_n_epochs = top_k, every_n_epochs

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and log the panel, on rank 0."""
        folder = trainer.log_dir or trainer.default_root_dir  # collective call: must precede the early return
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.current_epoch % self.every_n_epochs:
            return
        model: Any = pl_module
        images = self.images.to(pl_module.device)
        method = model.evaluator.methods["CE-FAM"]  # the evaluated method
        activated = Activated(images, model.classifier(images))
        scores = method.explainer.scores(method.encoding(activated))
        concept = scores.topk(min(self.top_k, scores.shape[1]), dim=1).indices
        image = torch.arange(len(concept), device=concept.device).repeat_interleave(concept.shape[1])
        pairs = ConceptPairs(image, concept.flatten())
        stages = model.classifier.stage_names
        candidates = method.regions(activated, pairs, images.shape[-2:], len(stages))
        rows = []
        for row, (index, number) in enumerate(zip(image.tolist(), concept.flatten().tolist(), strict=True)):
            about = model.concepts.concepts[number]
            parts = zip(
                candidates.maps[row], candidates.stage[row].tolist(), candidates.score[row].tolist(), strict=True
            )
            maps = [
                Candidate(region.float().cpu().numpy(), f"{stages[stage]}  {score:.2f}", ("top1",) if not n else ())
                for n, (region, stage, score) in enumerate(parts)
            ]
            title = f"{about.word} ({about.category}), score {float(scores[index, number]):.2g}"
            rows.append(Example(title, to_image(images[index]), None, {"CE-FAM": maps}))
        path = Path(folder) / "panels" / f"epoch-{trainer.current_epoch:04d}.png"
        write_contact_sheet(rows, path, NUMBERS)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                # W&B drops values logged for an earlier step, so the trainer's step is used, as for all metrics.
                logger.log_image("regions", [str(path)], step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                pixels = np.asarray(Image.open(path).convert("RGB"))
                logger.experiment.add_image("regions", pixels, trainer.global_step, dataformats="HWC")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Explain the photographs, on rank 0."""
        folder = trainer.log_dir or trainer.default_root_dir
        if not trainer.is_global_zero:
            return
        model: Any = pl_module
        explainer = model.evaluator.methods["CE-FAM"].explainer
        rows = []
        for explanation in explainer.explain(self.photographs, top_k=TABLE):
            for part in explanation:
                rows.append(
                    [explanation.name, explanation.target_name, explanation.probability, part.concept.word, part.score,
                     explanation.stages[part.stage], part.contribution]
                )  # fmt: skip
        lines = [COLUMNS, *([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row] for row in rows)]
        write_text(Path(folder) / "explanations.csv", csv_text(lines))
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("explanations", columns=COLUMNS, data=rows, step=trainer.global_step)
            elif isinstance(logger, TensorBoardLogger):
                head = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS)]
                table = "\n".join(f"| {line} |" for line in [*head, *(" | ".join(line) for line in lines[1:])])
                logger.experiment.add_text("explanations", table, trainer.global_step)
