"""open_clip models through the real loader: by config and checkpoint, by folder, both kinds, and what is refused."""

import json

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from cefam import ConceptSet, VisionLanguageModel, load_vlm
from tests.conftest import TINY_CLIP


def load_tiny(world, **options):
    return load_vlm("tiny_clip", f"{world}/tiny_clip.pt", config=f"{world}/tiny_clip.json", **options)


def test_a_clip_by_config_and_checkpoint(world):
    vlm = load_tiny(world)
    assert (vlm.probability, vlm.logit_bias, vlm.embedding_dim) == ("softmax", 0.0, 32)
    assert vlm.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert vlm.preprocessing.size == (32, 32)
    assert vlm.preprocessing.mean == pytest.approx(open_clip.OPENAI_DATASET_MEAN)
    assert not any(p.requires_grad for p in vlm.train().parameters())
    assert not vlm.training


def test_image_embeddings_are_raw_and_equal_to_open_clips_own(world):
    vlm = load_tiny(world)
    pixels = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    transform = torch.stack([(p / 255 - torch.tensor(vlm.preprocessing.mean).view(3, 1, 1)) for p in pixels])
    transform = transform / torch.tensor(vlm.preprocessing.std).view(3, 1, 1)
    expected = vlm.model.encode_image(transform)
    torch.testing.assert_close(vlm.encode_image(pixels), expected.float())
    assert not torch.allclose(expected.norm(dim=1), torch.ones(2))


def test_a_siglip_kind_has_a_bias_and_a_sigmoid(world, tmp_path):
    config = {**TINY_CLIP, "init_logit_bias": -10.0}  # no "siglip" in the name: that would want a tokenizer from a hub
    (tmp_path / "tiny_sl.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny_sl.json")
    torch.save(open_clip.create_model("tiny_sl").state_dict(), tmp_path / "tiny_sl.pt")
    vlm = load_vlm("tiny_sl", str(tmp_path / "tiny_sl.pt"), config=str(tmp_path / "tiny_sl.json"))
    assert (vlm.probability, vlm.logit_bias) == ("sigmoid", -10.0)


def test_a_local_folder(world, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    preprocess = {"mean": [0.5] * 3, "std": [0.25] * 3, "interpolation": "bilinear"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": TINY_CLIP, "preprocess_cfg": preprocess}))
    state = torch.load(world / "tiny_clip.pt", weights_only=True)
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "open_clip_model.safetensors")
    vlm = load_vlm(f"local-dir:{folder}")
    assert vlm.preprocessing.mean == (0.5, 0.5, 0.5)
    assert vlm.preprocessing.interpolation == "bilinear"
    torch.testing.assert_close(vlm.encode_text(["a wing"]), load_tiny(world).encode_text(["a wing"]))


@pytest.mark.parametrize(
    ("arguments", "error", "advice"),
    [
        (("ViT-B-17", "openai"), ValueError, "Did you mean 'ViT-B-16'"),
        (("ViT-B-16", "openai"), ValueError, "'ViT-B-16-quickgelu'"),
        (("ViT-B-16", "metaclip_400m"), ValueError, "'ViT-B-16-quickgelu'"),
        (
            ("roberta-ViT-B-32", "laion2b_s12b_b32k"),
            FileNotFoundError,
            "could not be loaded",
        ),  # its own config: no suffix
        (("ViT-B-16", None), ValueError, "its embeddings are random"),
        (("ViT-B-16-quickgelu", "openai"), FileNotFoundError, "name the folder as 'local-dir:/path'"),
        (("local-dir:/nowhere", None), FileNotFoundError, "could not be loaded"),
        (("ViT-B-16", "missing.pt"), FileNotFoundError, "could not be loaded"),
    ],
)
def test_loading_errors_say_what_to_do(arguments, error, advice, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(error, match=advice):
        load_vlm(*arguments)


def test_an_openai_checkpoint_under_a_gelu_name_is_refused(tmp_path):
    marks = {name: torch.tensor(224) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save({**marks, "logit_scale": torch.tensor(1.0)}, tmp_path / "ViT-B-16.pt")
    with pytest.raises(ValueError, match=r"OpenAI checkpoint, .* 'ViT-B-16-quickgelu'"):
        load_vlm("ViT-B-16", str(tmp_path / "ViT-B-16.pt"))


def test_a_text_that_would_be_cut_is_refused(world):
    with pytest.raises(ValueError, match="shorten the concept"):
        load_tiny(world).encode_text(["word " * 40])


@pytest.mark.parametrize(
    ("content", "advice"), [("{", "is not JSON"), ("{}", "needs embed_dim"), (json.dumps(TINY_CLIP), "must be 'other'")]
)
def test_a_bad_config_is_refused(tmp_path, content, advice):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=advice):
        load_vlm("mine", "x.pt", config=str(path))


class Counting(VisionLanguageModel):
    """A VLM of the user's own, that counts how often it is asked."""

    embedding_dim = 4
    logit_scale = 7.0

    def __init__(self, shift: float = 0.0):
        super().__init__()
        self.asked, self.shift = 0, shift

    def encode_text(self, texts):
        self.asked += len(texts)
        return torch.tensor([[len(t), t.count("a"), 1.0 + self.shift, 2.0] for t in texts])


def test_text_embeddings_are_cached_by_content(tmp_path):
    concepts, vlm = ConceptSet.from_words(["wing", "fur"]), Counting()
    first = concepts.embed(vlm, tmp_path)
    asked = vlm.asked
    again = concepts.embed(vlm, tmp_path)
    assert vlm.asked == asked + 1  # the probe of the weights alone
    assert torch.equal(first.embeddings, again.embeddings)
    assert again.logit_scale == 7.0
    changed = concepts.embed(Counting(shift=1.0), tmp_path)
    assert not torch.equal(first.embeddings, changed.embeddings)
    assert len(ConceptSet.from_words(["wing", "feather"]).embed(vlm, tmp_path)) == 2
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
