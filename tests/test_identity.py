"""The key of a kept result: each input changed in turn gives another one; and what is kept is not taken for another artefact's."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from PIL import Image

from cefam import ConceptSet, Explainer, MethodSettings, Trained, Translator, load_classifier, load_vlm
from cefam.brodenette import describe, draw
from cefam.errors import CefamError
from cefam.evaluation.module import RegionEvaluation
from cefam.images.views import EvaluationView
from cefam.io.identity import differing, digest, identity
from cefam.probe import Probe
from tests.commands import assert_same_results, draw_scenes, evaluated, run
from tests.conftest import fill
from tests.test_wrapping import Net, explainer_of


def concepts_of(vlm, words=("wing", "tail"), **changes):
    return replace(ConceptSet.from_words(words).embed(vlm), **changes)


def changed_inputs():
    """Explainers that differ from the first in one input each."""
    vlm, other_vlm = load_vlm("brodenette"), load_vlm("brodenette_sigmoid")
    classifier = load_classifier("brodenette")
    other = load_classifier("brodenette")
    renamed = load_classifier("brodenette")
    renamed.class_names = [name.upper() for name in renamed.class_names]
    retrained = load_classifier("brodenette").module
    with torch.no_grad():
        next(retrained.parameters()).mul_(1.001)
    stages = classifier.stage_names
    same = {"input_size": classifier.input_size, "preprocessing": classifier.preprocessing}
    made = lambda module, names=stages, **more: type(classifier)(module, names, **{**same, **more})  # noqa: E731
    translator, second = (fill(Translator(classifier.channels, 64, [8, 8]), seed) for seed in (1, 2))
    concepts = concepts_of(vlm)
    prompted = replace(concepts, concepts=tuple(replace(c, prompt=f"{c.prompt}!") for c in concepts.concepts))
    usual = {"classifier": classifier, "translator": translator, "concepts": concepts, "vlm": vlm}
    yield "nothing", usual
    yield "the same again", {**usual, "classifier": other}
    yield "classifier", {**usual, "classifier": made(retrained, class_names=classifier.class_names)}
    yield "class names", {**usual, "classifier": renamed}
    yield (
        "outputs",
        {**usual, "classifier": made(other.unfolded().module, outputs="sigmoid", class_names=classifier.class_names)},
    )
    yield "translator", {**usual, "translator": second}
    yield "words", {**usual, "concepts": concepts_of(vlm, ("wing", "leg"))}
    yield "prompts", {**usual, "concepts": prompted}
    yield "embeddings", {**usual, "concepts": replace(concepts, embeddings=concepts.embeddings.flip(0))}
    yield "scale", {**usual, "concepts": replace(concepts, logit_scale=3.0)}
    yield "probability", {**usual, "concepts": replace(concepts, probability="sigmoid")}
    yield "vlm", {**usual, "vlm": other_vlm}
    yield "no vlm", {**usual, "vlm": None}
    yield "settings", {**usual, "settings": MethodSettings(num_channels=5)}
    yield "doubts", {**usual, "doubts": {1: "never seen"}}


def test_each_input_of_an_explanation_changes_its_key():
    keys = {}
    for name, inputs in changed_inputs():
        key = json.dumps(
            identity(**Explainer(**inputs).identity(), view=EvaluationView(), options={"top_k": 8}), sort_keys=True
        )
        if name == "the same again":
            assert key == keys["nothing"]
        else:
            assert key not in keys.values(), name
        keys[name] = key


def test_options_views_probes_data_and_the_version_change_a_key(monkeypatch):
    usual = {
        "view": EvaluationView(),
        "options": {"top_k": 8, "target": None},
        "data": ["abc"],
        "probe": torch.zeros(3),
    }
    keys = [identity(**usual)]
    for change in (
        {"view": EvaluationView(300, 224)}, {"options": {"top_k": 9, "target": None}}, {"options": {"top_k": 8, "target": 0}},
        {"data": ["abd"]}, {"probe": torch.tensor([0, 0, 1e-9])}, {"probe": torch.zeros(3).double()}, {"probe": None},
    ):  # fmt: skip
        keys.append(identity(**usual, **{}) if not change else identity(**{**usual, **change}))
    monkeypatch.setattr("cefam.io.identity.__version__", "999")
    keys.append(identity(**usual))
    assert len({json.dumps(key, sort_keys=True) for key in keys}) == len(keys)
    assert differing(keys[0], keys[1]) == " (view)"
    with pytest.raises(TypeError, match="content of a object is not known"):
        digest(object())


def test_a_probe_is_known_by_its_content_not_by_its_place(tmp_path, demo_probe):
    shutil.copytree(demo_probe, tmp_path / "copy")
    assert digest(Probe.read(demo_probe)) == digest(Probe.read(tmp_path / "copy"))
    changed = replace(Probe.read(demo_probe), covariance=Probe.read(demo_probe).covariance + 1e-6)
    assert digest(changed) != digest(Probe.read(demo_probe))


@pytest.fixture(scope="module")
def demo_probe(tmp_path_factory):
    folder = tmp_path_factory.mktemp("probe")
    draw_scenes(folder / "scenes", 60)
    options = ["--config", "features/demo", "--images", folder / "scenes", "--folder", folder / "probe", "--top", 10]
    assert run("probe", *options) == 0
    return folder / "probe"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Photographs, and two artefacts that differ in their translator alone."""
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "photos").mkdir()
    for number in range(5):
        Image.fromarray(draw(describe("test", number)).image).save(folder / f"photos/{number}.png")
    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    concepts = ConceptSet.brodenette().embed(vlm)
    for name, seed in (("first", 1), ("second", 2)):
        torch.manual_seed(seed)
        Trained(classifier, Translator(classifier.channels, 64), concepts, vlm.identity()).write(folder / name)
    return folder


def summarized(folder, artefact, out, *more):
    options = ["--artefact", folder / artefact, "--out", out, "--device", "cpu", *more]
    status = run("summarize", folder / "photos", *options)
    return status, json.loads((out / "summary.json").read_text())["concepts"]


def test_a_summary_of_another_translator_is_made_anew(photographs, tmp_path):
    _, first = summarized(photographs, "first", tmp_path / "out")
    _, fresh = summarized(photographs, "second", tmp_path / "fresh")
    status, again = summarized(photographs, "second", tmp_path / "out", "--overwrite", "true")
    assert (status, again) == (0, fresh)
    assert again != first


def test_unfinished_pages_of_another_translator_are_refused_or_replaced(photographs, tmp_path, capsys):
    """A stopped folder: its journal names a page of the first translator."""
    from cefam.commands import explain as verb

    out, options = tmp_path / "pages", ["--out", tmp_path / "pages", "--device", "cpu", "--method", "ce-fam"]
    write, written = verb._write, []

    def stop_after_two(*arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(1)
        return write(*arguments)

    verb._write = stop_after_two
    try:
        assert run("explain", photographs / "photos", "--artefact", photographs / "first", *options) == 130
    finally:
        verb._write = write
    kept = sorted(out.glob("*.html"))
    before = [page.read_text() for page in kept]
    assert len(kept) == 2
    assert run("explain", photographs / "photos", "--artefact", photographs / "second", *options) == 1
    assert "work of a run with other inputs or options (translator): name another folder" in capsys.readouterr().err
    options += ["--overwrite", "true"]
    assert run("explain", photographs / "photos", "--artefact", photographs / "second", *options) == 0
    assert all(page.read_text() != text for page, text in zip(kept, before, strict=True))
    assert len(list(out.glob("*.html"))) == 6


@pytest.fixture
def stopped(trained, prepared, tmp_path, monkeypatch):
    """An evaluation that has measured all batches, and was stopped before its report."""

    def stop(self, parts):
        raise CefamError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(RegionEvaluation, "_report", stop)
        assert evaluated(trained, prepared, tmp_path / "out") == 1
    assert len(list((tmp_path / "out/.parts").glob("*.npz"))) > 1
    return tmp_path / "out"


def artefact_with(trained, folder, **changes):
    """A folder as ``trained`` has one, with another artefact in it."""
    shutil.copytree(trained / "artefact", folder / "artefact")
    found = Trained.read(trained / "artefact")
    replace(found, **{name: change(getattr(found, name)) for name, change in changes.items()}).write(
        folder / "artefact", True
    )
    return folder


def retrained(translator):
    return fill(translator, 9).eval()


CHANGES = {
    "translator": {"translator": retrained},
    "embeddings": {"concepts": lambda concepts: replace(concepts, embeddings=concepts.embeddings.flip(0))},
    "settings": {"settings": lambda settings: settings.changed(num_channels=3)},
}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "translator" else pytest.mark.soak) for n in CHANGES]
)
def test_parts_of_another_artefact_are_not_mixed_with_new_ones(name, stopped, trained, prepared, measured, tmp_path):
    other = artefact_with(trained, tmp_path / "other", **CHANGES[name])
    assert evaluated(other, prepared, stopped) == 0
    assert evaluated(other, prepared, tmp_path / "fresh") == 0
    records = (stopped / "records.csv").read_text()
    assert records == (tmp_path / "fresh/records.csv").read_text()
    assert records != (measured / "records.csv").read_text()


def test_an_artefact_that_was_copied_is_the_same(stopped, trained, prepared, measured, tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("cefam.evaluation.module.write_part", lambda path, *rest: written.append(path))
    assert evaluated(artefact_with(trained, tmp_path / "copy"), prepared, stopped) == 0
    assert written == []  # nothing is measured again
    assert_same_results(measured, stopped)


def test_doubts_about_an_artefact_that_was_trained_again_are_not_said(photographs, tmp_path, recwarn):
    from cefam.doctor import doubts

    shutil.copytree(photographs / "first", tmp_path / "a")
    trained = Trained.read(tmp_path / "a")
    key = doubts.key_of(trained.classifier, trained.translator, trained.concepts)
    doubts.write(tmp_path / "a", key, {1: "never seen"}, {})
    assert Trained.read(tmp_path / "a").doubts == {1: "never seen"}
    shutil.copy(photographs / "second/model.safetensors", tmp_path / "a/model.safetensors")
    assert Trained.read(tmp_path / "a").doubts == {}
    assert "judges another artefact (translator): run `cefam doctor` again" in str(recwarn.pop(UserWarning).message)


def test_a_wrapped_network_is_known_by_weights_and_stages():
    one, other = explainer_of(Net()), explainer_of(Net())
    assert digest(one.identity()) == digest(other.identity())
    assert digest(explainer_of(Net(), ["a", "b"]).identity()) != digest(one.identity())
