"""The two training runs, as LightningModules over scenes in memory."""

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from cefam.brodenette.captions import Caption
from cefam.brodenette.rules import CAPTION_ONLY
from cefam.brodenette.towers import MEAN, STD, build_classifier
from cefam.brodenette.vocabulary import LABELS
from cefam.concepts import ConceptSet
from examples.brodenette_recipe.data import Scenes, batches, shifted


class Epochs(IterableDataset[dict[str, Any]]):
    """Shuffled, augmented batches; every epoch has its own order, the same in every run."""

    def __init__(self, scenes: Scenes, batch_size: int, seed: int, captions: bool = False) -> None:
        self.scenes, self.batch_size, self.captions = scenes, batch_size, captions
        self.generator = torch.Generator().manual_seed(seed)
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.scenes.label) // self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        scenes, variant = self.scenes, self.epoch
        self.epoch += 1
        for rows in batches(len(scenes.label), self.batch_size, self.generator):
            batch: dict[str, Any] = {
                "image": shifted(scenes.images[rows], self.generator),
                "label": scenes.label[rows],
                "concepts": scenes.concepts[rows],
            }
            if self.captions:
                chosen: list[Caption] = [scenes.captions[row][variant % len(scenes.captions[row])] for row in rows]
                batch["caption"] = [" and ".join(caption) for caption in chosen]
                # Another scene's caption may be true here too: it is no negative then.
                truth = [[scenes.facts[row].issuperset(caption) for caption in chosen] for row in rows]
                batch["true"] = torch.tensor(truth)
            yield batch


def loader(epochs: Epochs) -> DataLoader[Any]:
    """Batches as the data set makes them."""
    return DataLoader(epochs, batch_size=None)


def normalized(images: Tensor) -> Tensor:
    """What both towers see of uint8 images."""
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class ClassifierTraining(L.LightningModule):
    """Cross-entropy over the classes; SGD with momentum, one cycle."""

    def __init__(self, steps: int, peak: float = 0.2) -> None:
        super().__init__()
        self.steps, self.peak = steps, peak
        self.network = build_classifier().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step."""
        logits = self.network(normalized(batch["image"]))
        self.log("accuracy", (logits.argmax(1) == batch["label"]).float().mean(), prog_bar=True)
        return F.cross_entropy(logits, batch["label"])

    def configure_optimizers(self) -> Any:
        """SGD, one cycle."""
        optimizer = torch.optim.SGD(self.parameters(), self.peak, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.peak, total_steps=self.steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class VLMTraining(L.LightningModule):
    """Sigmoid losses on known truth: of every concept prompt but the held-out ones, and of every caption of the batch.

    The logit scale is held at CLIP's 100 (after a warm-up from 10), so that cosines spread as little as CLIP's do.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, steps: int, peak: float = 1e-3, scale: float = 100.0) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer, self.steps, self.peak, self.scale = tokenizer, steps, peak, scale
        self.model.logit_scale.requires_grad_(False).fill_(math.log(scale))
        self.bias = nn.Parameter(torch.zeros(2))
        concepts = ConceptSet.brodenette()
        trained = [(label.category, label.name) not in CAPTION_ONLY for label in LABELS]
        self.trained = torch.tensor(trained)
        self.prompts = [prompt for prompt, use in zip(concepts.prompts, trained, strict=True) if use]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step."""
        texts = self.tokenizer([*self.prompts, *batch["caption"]])
        image = F.normalize(self.model.encode_image(normalized(batch["image"])), dim=-1)
        text = F.normalize(self.model.encode_text(texts), dim=-1)
        scale = min(10 + (self.scale - 10) * self.global_step / (self.steps / 5), self.scale)
        cosine = (image @ text.T) * scale
        count = len(self.prompts)
        truth = batch["concepts"][:, self.trained].float()
        concepts = F.binary_cross_entropy_with_logits(cosine[:, :count] + self.bias[0], truth)
        captions = F.binary_cross_entropy_with_logits(cosine[:, count:] + self.bias[1], batch["true"].float())
        # A caption has one positive image or a few: its mean over the batch would hardly count.
        self.log_dict({"concepts": concepts, "captions": captions}, prog_bar=True)
        return concepts + captions * 4

    def configure_optimizers(self) -> Any:
        """AdamW, one cycle."""
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(learned, self.peak, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.peak, total_steps=self.steps, pct_start=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
