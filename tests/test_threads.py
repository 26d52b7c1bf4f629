"""One explainer, classifier or VLM in several threads, as in a web service: each call gives its own image's answer."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from cefam import ConceptPairs, ConceptSet, Trained, Translator, load_classifier, load_vlm
from cefam.methods import Activated, GradCAMPlusPlusRegions, IntegratedGradientsRegions, MethodContext
from tests.test_wrapping import Net, explainer_of

COUNT = 24


@pytest.fixture(scope="module")
def explainer():
    torch.manual_seed(0)
    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    concepts = ConceptSet.brodenette().embed(vlm)
    return Trained(classifier, Translator(classifier.channels, 64), concepts).explainer(vlm)


@pytest.fixture(scope="module")
def images():
    return torch.rand(COUNT, 1, 3, 96, 96, generator=torch.Generator().manual_seed(0))


def of_each(function, count=COUNT, threads=4):
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, range(count)))


def test_explanations_are_those_of_their_own_photograph(explainer, images):
    def told(number):
        found = explainer.explain(images[number], top_k=2)[0]
        return [value for part in found for value in (part.concept.number, part.score, part.contribution, part.direct)]

    alone = [told(number) for number in range(COUNT)]
    for found, expected in zip(of_each(told), alone, strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


def test_maps_logits_and_resumed_runs_are_those_of_their_own_image(explainer, images):
    classifier, every = explainer.classifier, torch.tensor([0])

    def told(number):
        output = classifier(images[number])
        again = classifier.rerun(output, images[number], every)
        resumed = classifier.resume(2, output.activations[2] * 0.5, output.context)
        return [*output.activations, output.logits, again.logits.detach(), resumed]

    alone = [told(number) for number in range(COUNT)]
    for found, expected in zip(of_each(told), alone, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_two_classifiers_in_two_threads_and_settings_of_the_process_stay(images):
    """The choice of attention kernels holds for the process: it must be as before when all threads are done."""
    before = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()
    explainers = [explainer_of(Net()), explainer_of(Net())]
    pairs = ConceptPairs(torch.tensor([0]), torch.tensor([1]))
    small = images[..., :32, :32]
    alone = [explainers[0].regions(small[number], pairs).maps for number in range(COUNT)]
    found = of_each(lambda number: explainers[number % 2].regions(small[number], pairs).maps)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-6)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()) == before


def test_a_failure_leaves_nothing_behind(explainer, images):
    """Every third call fails inside of the network, in the middle of the others."""
    expected = explainer.classifier(images[0]).logits

    def attempt(number):
        if number % 3:
            return explainer.classifier(images[0]).logits
        with pytest.raises(RuntimeError):
            explainer.classifier(images[0][:, :2])
        return expected

    for found in of_each(attempt):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in explainer.classifier.modules())
    assert not any("forward" in vars(module) for module in explainer.classifier.modules())


def test_new_texts_are_embedded_in_threads(explainer):
    words = [f"a {color} thing" for color in ("red", "blue", "green", "striped")]
    alone = [explainer.with_texts([word]).concepts.embeddings[-1] for word in words]
    found = of_each(lambda number: explainer.with_texts([words[number % 4]]).concepts.embeddings[-1])
    for number, embedding in enumerate(found):
        torch.testing.assert_close(embedding, alone[number % 4], rtol=1e-4, atol=1e-6)


def test_a_text_cache_is_written_by_many(tmp_path):
    vlm = load_vlm("brodenette")
    found = of_each(lambda number: ConceptSet.brodenette().embed(vlm, tmp_path).embeddings, 8)
    for embeddings in found:
        torch.testing.assert_close(embeddings, found[0])
    assert len(list(tmp_path.iterdir())) == 1


@pytest.fixture(scope="module")
def hugging_face_vlm(tmp_path_factory):
    """A teacher with a tokenizer of Hugging Face, which reads 16 tokens."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("hf")
    words = ["[PAD]", "[UNK]", "a", "photo", "of", "striped", "wing", "tail"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    fast.save_pretrained(folder)
    text = {
        "context_length": 16, "vocab_size": 8, "width": 32, "heads": 2, "layers": 1, "hf_tokenizer_name": str(folder),
        "no_causal_mask": True, "pool_type": "last",
    }  # fmt: skip
    vision = {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16}
    config = {"embed_dim": 32, "vision_cfg": vision, "text_cfg": text}
    (folder / "tiny_hf.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder / "tiny_hf.json")
    torch.manual_seed(0)
    save_file(open_clip.create_model("tiny_hf").state_dict(), folder / "open_clip_model.safetensors")
    about = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(about))
    return load_vlm(f"local-dir:{folder}")


def test_a_prompt_longer_than_the_model_reads_is_refused_with_any_tokenizer(hugging_face_vlm):
    fits = "striped " * 15 + "wing"
    assert hugging_face_vlm.encode_text([fits, "striped " * 15 + "tail"]).unique(dim=0).shape[0] == 2
    with pytest.raises(ValueError, match="has 17 tokens with both ends, the model reads 16: shorten the concept"):
        hugging_face_vlm.encode_text(["wing", f"{fits} tail"])
    clip = load_vlm("brodenette")
    length = clip.model.context_length
    clip.encode_text(["red " * (length - 2)])
    with pytest.raises(ValueError, match=f"has {length + 1} tokens with both ends, the model reads {length}"):
        clip.encode_text(["red " * (length - 1)])


def test_a_fast_tokenizer_is_used_by_one_thread_at_a_time(hugging_face_vlm):
    texts = [["wing"], ["striped wing", "tail"], ["a photo of a tail"], ["striped " * 15]]
    alone = [hugging_face_vlm.encode_text(each) for each in texts]
    found = of_each(lambda number: hugging_face_vlm.encode_text(texts[number % 4]), 40, 8)
    for number, embedding in enumerate(found):
        torch.testing.assert_close(embedding, alone[number % 4], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [partial(IntegratedGradientsRegions, steps=6), GradCAMPlusPlusRegions])
def test_saliency_maps_are_those_of_their_own_photograph(explainer, images, method):
    rows = method(MethodContext(Trained(explainer.classifier, explainer.translator, explainer.concepts)))
    pairs = ConceptPairs(torch.zeros(2).long(), torch.tensor([3, 40]))

    def maps(number):
        activated = Activated(images[number], explainer.classifier(images[number]))
        return rows.regions(activated, pairs, (24, 24), 1).maps

    alone = [maps(number) for number in range(COUNT)]
    for one, other in zip(alone, of_each(maps), strict=True):
        torch.testing.assert_close(one, other)
