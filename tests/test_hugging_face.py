"""Image classifiers in Hugging Face's format, written to a folder and read from it."""

import pytest
import torch

from cefam import Trained, Translator, load_classifier
from cefam.errors import CefamError, MissingError
from tests.conftest import fill
from tests.test_explain import explainer_of

transformers = pytest.importorskip("transformers", reason="the package transformers is not installed")


def written(folder, kind):
    """A small classifier and its image processor, saved as their library does."""
    labels = {0: "heron", 1: "crane", 2: "stork"}
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1], layer_type="basic", id2label=labels
        )
        processor = transformers.ConvNextImageProcessor(
            size={"shortest_edge": 64}, image_mean=[0.4, 0.5, 0.6], image_std=[0.2, 0.2, 0.3]
        )
        module = transformers.ResNetForImageClassification(config)
    else:
        config = transformers.ViTConfig(
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=48,
            patch_size=8,
            id2label=labels,
        )
        processor = transformers.ViTImageProcessor(size={"height": 48, "width": 48}, resample=3)
        module = transformers.ViTForImageClassification(config)
    fill(module, 4)
    module.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return module


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_it_gives_the_same_logits_names_and_cuts(kind, tmp_path):
    module = written(tmp_path / "model", kind)
    classifier = load_classifier(f"hf:{tmp_path / 'model'}")
    assert classifier.class_names == ["heron", "crane", "stork"]
    assert all(stage.resumable for stage in classifier.stages)
    images = torch.rand(2, 3, 48, 48)
    output = classifier(images)
    expected = module(classifier.preprocessing(images)).logits
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
    for stage, activation in enumerate(output.activations):
        again = classifier.resume(stage, activation, output.context)
        torch.testing.assert_close(again, output.logits, rtol=1e-3, atol=1e-4)
    if kind == "resnet":
        assert classifier.channels == [8, 12, 16, 20]
        assert classifier.preprocessing.mean == (0.4, 0.5, 0.6)
    else:
        assert classifier.preprocessing.size == (48, 48)
        assert classifier.preprocessing.interpolation == "bicubic"


def test_it_is_explained_and_kept_in_an_artefact(tmp_path):
    written(tmp_path / "model", "resnet")
    classifier = load_classifier(f"hf:{tmp_path / 'model'}")
    concepts = explainer_of("resnet")[0].concepts
    trained = Trained(classifier, fill(Translator(classifier.channels, 16), 2), concepts)
    again = Trained.read(trained.write(tmp_path / "artefact"))
    explanation = again.explainer().explain(torch.rand(1, 3, 64, 64), top_k=2)[0]
    assert explanation.target_name in ("heron", "crane", "stork")
    assert all(part.contribution is not None for part in explanation)


def test_what_is_not_there_or_runs_code_is_refused(tmp_path):
    with pytest.raises(MissingError, match=r"could not be loaded.*name a folder as 'hf:/path'"):
        load_classifier("hf:nobody/no-such-model")
    module = written(tmp_path / "model", "resnet")
    (tmp_path / "model/model.safetensors").unlink()
    torch.save(module.state_dict(), tmp_path / "model/pytorch_model.bin")
    with pytest.raises(MissingError, match="could not be loaded"):
        load_classifier(f"hf:{tmp_path / 'model'}")
    with pytest.raises(CefamError, match="brings its own weights and classes"):
        load_classifier(f"hf:{tmp_path / 'model'}", num_classes=4)
