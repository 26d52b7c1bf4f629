"""Run the method on the CPU and on a pretended accelerator: the same values, and nothing that mixes the two.

``python -m tests.check_devices resnet vit``, in a process of its own (see :mod:`tests.pretend`).
"""

import io
import sys
import tempfile

import numpy as np
import torch
from torchvision.transforms.functional import to_pil_image

from cefam import CEFAM, ConceptSet, Trained
from cefam.attribution.types import Activated
from cefam.datasets import Mask, Sample, ShardWriter
from cefam.evaluation.evaluator import RegionEvaluator
from cefam.methods import (
    BeyondRegions,
    CEFAMRegions,
    CenterRegions,
    GradCAMRegions,
    LuminanceRegions,
    MethodContext,
    NeuronRegions,
    RandomChannelRegions,
    RandomMapRegions,
)
from cefam.methods.associations import Associations, AssociationsAbout
from cefam.methods.masked import MaskedShards
from cefam.pairs import RegionBatch
from cefam.report import examples
from tests.pretend import OnDevice, alike, moved, pretended
from tests.test_explain import BUILDERS, DIM, RAGGED, TEXTS, explainer_of


def bench_of(explainer):
    """What methods start from."""
    return MethodContext(
        Trained(explainer.classifier, explainer.translator, explainer.concepts, settings=explainer.settings)
    )


def explained(explainer, images):
    """Everything that an Explainer gives."""
    encoding = explainer.encode(images)
    found = [encoding.embedding, explainer.scores(encoding)]
    for derivative in ("total", "branch"):
        regions = explainer.regions(encoding, RAGGED, derivative)
        association = explainer.association(encoding, RAGGED, 3, regions)
        found += [regions.maps, regions.weights, association]
        if all(stage.resumable for stage in explainer.classifier.stages):
            contribution = explainer.contribution(encoding, RAGGED, None, 3, association.argmax(dim=1), regions)
            found += [contribution.value, contribution.curve]
    beyond = BeyondRegions(bench_of(explainer))
    explainer.explain(images, 3, num_channels=3)
    activated = Activated(encoding.images, encoding.output)
    return [*found, beyond.maps(activated, RAGGED.to(encoding.device)), beyond.presence(activated)]


def neurons_of(context):
    """Every neuron stands for a concept."""
    found, random = [], torch.Generator().manual_seed(0)
    for stage, count in enumerate(context.classifier.channels):
        concept = torch.randint(0, TEXTS - 2, (count,), generator=random)
        found.append((stage, torch.arange(count), concept, torch.rand(count, generator=random)))
    about = AssociationsAbout("m", {}, context.classifier.identity(), context.concepts.identity, context.concepts.words)
    return Associations.of_stages(about, found)


def measured(explainer, batch):
    """All rows of a table, and a contact sheet."""
    context = bench_of(explainer)
    methods = {
        "CE-FAM": CEFAMRegions(context, num_channels=3),
        "class": GradCAMRegions(context),
        "concept": GradCAMRegions(context, of="concept"),
        "channel": RandomChannelRegions(),
        "map": RandomMapRegions(),
        "center": CenterRegions(),
        "light": LuminanceRegions(),
        "neurons": NeuronRegions(context, neurons_of(context)),
        "beyond": BeyondRegions(context),
    }
    evaluator = RegionEvaluator(methods, explainer.concepts, 2, explainer.settings)
    found = evaluator.evaluate(batch, explainer.classifier(batch.image), keep=[0, 2])
    kept = examples.of_pairs(batch, found, [0, 2], explainer.concepts, explainer.classifier.stage_names)
    assert [len(example.candidates) for example in kept] == [9, 9]
    return found


def trained(module, batch, features):
    """A training step from features, a validation of both kinds."""
    loss = module.training_step(features, 0)
    gradients = torch.autograd.grad(loss, list(module.translator.parameters()))
    module.validation_step(features, 0)
    module.validation_step(batch, 0, 1)
    means = [metric.compute() for metric in module.val_means.values()]
    regions = [list(metric.compute().values()) for metric in module.val_regions.values()]
    return [loss, gradients, means, module.val_correlation.compute(), regions]


def batch_of(images):
    """Photographs with masks, of every kind: full, empty, of a label that is no concept."""
    torch.manual_seed(3)
    masks = torch.randint(0, TEXTS + 3, (4, 20, 20), dtype=torch.int32)
    masks[1], masks[2] = 5, 0
    pairs = [(index, int(label)) for index, mask in enumerate(masks) for label in mask.unique() if label > 0]
    return RegionBatch(
        image=images, ids=["a", "b", "c"], masks=masks, mask_image=torch.tensor([0, 0, 1, 2]),
        mask_category=["object", "part", "color", "object"],
        pair_mask=torch.tensor([mask for mask, _ in pairs]), pair_label=torch.tensor([label for _, label in pairs]),
    )  # fmt: skip


def check_masked():
    """What methods are fitted to is read on the classifier's device and returned on the CPU."""
    explainer, images = explainer_of("resnet", "published")
    concepts, other = ConceptSet.from_words(["wing"], category="object"), moved(explainer.classifier)
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(folder, "test", labels=[{"number": 1, "name": "wing", "category": "object"}]) as writer:
            stream = io.BytesIO()
            to_pil_image(images[0]).save(stream, "PNG")
            mask = Mask("object", np.ones(images.shape[-2:], np.int32))
            writer.write(Sample("a", stream.getvalue(), ".png", masks=(mask,)))
        (here,) = MaskedShards(explainer.classifier, concepts, folder)
        with pretended():
            (there,) = MaskedShards(other, concepts, folder)
    torch.testing.assert_close(here.maps, there.maps)


def on_device(batch):
    """The same, moved."""
    return {name: OnDevice(value) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def check(kind, preset):
    """One classifier in one preset."""
    explainer, images = explainer_of(kind, preset)
    listed = ConceptSet.from_words([f"word {index}" for index in range(TEXTS)], category="object")
    concepts = ConceptSet(listed.concepts, explainer.concepts.embeddings, 20.0)
    classifier, batch = explainer.classifier, batch_of(images)
    module = CEFAM(classifier, None, concepts, 0.1, [20, 18], preset=preset, num_channels=3)
    features = {"pooled": [torch.rand(6, width) for width in classifier.channels], "embedding": torch.randn(6, DIM)}
    other = moved(module)
    here = [explained(module.explainer, images), measured(module.explainer, batch), trained(module, batch, features)]
    with pretended():
        there_images, there_batch = OnDevice(images), RegionBatch(**on_device(vars(batch)))
        there_features = {
            "pooled": [OnDevice(z) for z in features["pooled"]],
            "embedding": OnDevice(features["embedding"]),
        }
        there = [
            explained(other.explainer, there_images),
            measured(other.explainer, there_batch),
            trained(other, there_batch, there_features),
        ]
    for name, one, two in zip(("explained", "measured", "trained"), here, there, strict=True):
        # Rounded otherwise, two pixels may change places, and an NRA moves by some thousandths.
        tolerance = {"rtol": 1e-4, "atol": 1e-6} if name == "explained" else {"rtol": 1e-2, "atol": 3e-3}
        alike(one, two, f"{kind}, {preset}, {name}", tolerance)


if __name__ == "__main__":
    check_masked()
    for number, kind in enumerate(BUILDERS):
        if kind in sys.argv[1:]:
            check(kind, ("published", "paper")[number % 2])
