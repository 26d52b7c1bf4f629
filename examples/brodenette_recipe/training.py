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
from cefam.brodenette.rules import CAPTION_ONLY, CLASSES
from cefam.brodenette.towers import CLASSIFIERS, MEAN, STD
from cefam.brodenette.vocabulary import LABELS
from cefam.concepts.sets import ConceptSet
from examples.brodenette_recipe.data import Scenes, batches, shifted

SCALE = 100.0  # CLIP's logit scale
COMMON = 3.0  # length of what all embeddings have in common, at the start, per length of the rest


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
                "targets": scenes.targets[rows],
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
    """Cross-entropy with the classes that a scene may show; one cycle."""

    def __init__(self, name: str, steps: int) -> None:
        super().__init__()
        self.steps, self.is_vit = steps, "vit" in name
        self.network = CLASSIFIERS[name][0]().to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step."""
        logits = self.network(normalized(batch["image"]))
        self.log("accuracy", (logits.argmax(1) == batch["label"]).float().mean(), prog_bar=True)
        return F.cross_entropy(logits, batch["targets"])

    def configure_optimizers(self) -> Any:
        """SGD with momentum; AdamW for a transformer."""
        optimizer: torch.optim.Optimizer
        if self.is_vit:
            peak = 1e-3
            optimizer = torch.optim.AdamW(self.parameters(), peak, weight_decay=0.05)
        else:
            peak = 0.2
            optimizer = torch.optim.SGD(self.parameters(), peak, momentum=0.9, nesterov=True, weight_decay=5e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, total_steps=self.steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class VLMTraining(L.LightningModule):
    """Sigmoid losses on known truth: of every concept prompt but the held-out ones, and of every caption of the batch.

    Three things make it learn from few scenes: a linear head that names class and concepts, thrown away afterwards,
    without which the image encoder learns colors and little else; texts that differ before the first image is seen; and
    embeddings that begin with a large common part, as CLIP's have, so that a logit scale of 100 is not too sharp. The
    common parts of images and of texts are at right angles (CLIP's gap between the two): cosines lie around 0.
    """

    def __init__(self, model: nn.Module, tokenizer: Any, steps: int, peak: float = 2e-3) -> None:
        super().__init__()
        self.model: Any = model
        self.tokenizer, self.steps, self.peak = tokenizer, steps, peak
        self.model.logit_scale.requires_grad_(False).fill_(math.log(SCALE))
        self.bias = nn.Parameter(torch.zeros(2))  # of prompts and of captions
        concepts = ConceptSet.brodenette()
        trained = [(label.category, label.name) not in CAPTION_ONLY for label in LABELS]
        self.trained = torch.tensor(trained)
        self.prompts = [prompt for prompt, use in zip(concepts.prompts, trained, strict=True) if use]
        self.head = nn.Linear(self.model.visual.attnpool.c_proj.in_features, len(CLASSES) + len(self.prompts))

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 images (B, 3, SIZE, SIZE) -> embeddings (B, D), and what the head says (B, classes + prompts)."""
        visual = self.model.visual
        maps = visual.stem(normalized(images))
        for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
            maps = layer(maps)
        return visual.attnpool(maps), self.head(maps.mean(dim=(2, 3)))

    def begin(self, images: Tensor) -> None:
        """Tell the prompts apart; then give each encoder a part common to all it says, COMMON times as long as the rest."""
        tokens = self.tokenizer(self.prompts)
        texts = [value for name, value in self.model.named_parameters() if not name.startswith("visual")]
        optimizer = torch.optim.AdamW(texts, 1e-3)
        for _ in range(40):
            text = F.normalize(self.model.encode_text(tokens), dim=-1)
            optimizer.zero_grad()
            F.cross_entropy(text @ text.T * 20, torch.arange(len(tokens))).backward()
            optimizer.step()
        with torch.no_grad():
            text_length = self.model.encode_text(tokens).norm(dim=1).mean()
            image_length = self.encode(images)[0].norm(dim=1).mean()
            direction = self.model.text_projection.mean(dim=0)
            self.model.ln_final.bias += COMMON * text_length / direction.norm() / len(self.model.text_projection)
            across = direction.roll(1) - direction * (direction.roll(1) @ direction) / direction.square().sum()
            self.model.visual.attnpool.c_proj.bias += COMMON * image_length * F.normalize(across, dim=0)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """One step."""
        image, head = self.encode(batch["image"])
        text = self.model.encode_text(self.tokenizer([*self.prompts, *batch["caption"]]))
        logits = SCALE * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T
        count = len(self.prompts)
        truth = batch["concepts"][:, self.trained].float()
        losses = {
            "concepts": F.binary_cross_entropy_with_logits(logits[:, :count] + self.bias[0], truth),
            "captions": F.binary_cross_entropy_with_logits(logits[:, count:] + self.bias[1], batch["true"].float()),
            "head": F.binary_cross_entropy_with_logits(head[:, len(CLASSES) :], truth),
            "classes": F.cross_entropy(head[:, : len(CLASSES)], batch["label"], ignore_index=-1),
        }
        self.log_dict(losses, prog_bar=True)
        # Means over many prompts and captions, most of them plainly false, would hardly count beside the one class.
        return 4 * (losses["concepts"] + losses["captions"] + losses["head"]) + losses["classes"]

    def configure_optimizers(self) -> Any:
        """AdamW, one cycle; no decay of biases and norms, which hold the common part."""
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in learned if parameter.ndim > 1], "weight_decay": 0.05},
            {"params": [parameter for parameter in learned if parameter.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, self.peak)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.peak, total_steps=self.steps, pct_start=0.2)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
