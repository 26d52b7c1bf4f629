"""``cefam study``: the folder, what resumes, what takes it, a background vocabulary, and the configs of the single verbs."""

import json
import shutil

import pytest
import torch
import yaml

import cefam
from cefam import ConceptSet, Explainer, Trained, Translator, load_classifier, load_vlm
from cefam.concepts.background import with_background
from cefam.concepts.categories import BACKGROUND
from tests.commands import run
from tests.conftest import fill

TOWERS = ["--classifier", "brodenette", "--vlm", "brodenette"]


def test_a_study_is_taken_up_where_it_stopped(quick_study, tmp_path, capsys):
    folder = shutil.copytree(quick_study, tmp_path / "study", symlinks=True)
    shutil.rmtree(folder / "pages")
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("f*/**/*") if path.is_file()}
    photographs = quick_study.parent / "photographs"
    options = ["--images", photographs, "--concepts", "brodenette", "--folder", folder, "--epochs", 2, "--pages", 2]
    assert run("study", *TOWERS, *options, "--device", "cpu") == 0
    assert (folder / "pages/index.html").is_file()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert f"Pages: {folder}/pages/index.html" in capsys.readouterr().out
    assert run("study", *TOWERS, *options, "--epochs", 3, "--device", "cpu") == 1
    assert "other inputs or options" in capsys.readouterr().err


def test_verbs_take_the_folder_and_find_its_probe(quick_study, tmp_path, capsys):
    photograph = next(path for path in (quick_study / "photographs/val").rglob("*") if path.is_file())
    assert (
        run(
            "explain",
            photograph,
            "--artefact",
            quick_study,
            "--json",
            tmp_path / "one.json",
            "--out",
            tmp_path / "a.html",
        )
        == 0
    )
    assert "with a probe" not in capsys.readouterr().err
    told = json.loads((tmp_path / "one.json").read_text())
    explainer = Trained.read(quick_study).explainer(load_vlm("brodenette"))
    again = explainer.explain([cefam.Photograph.open(photograph, 96)])[0].to_dict()
    assert [part["word"] for part in told["concepts"]] == [part["word"] for part in again["concepts"]]
    assert [part["region"] for part in told["concepts"]] == [part["region"] for part in again["concepts"]]
    assert run("export", "--checkpoint", quick_study, "--folder", tmp_path / "exported") == 0


def test_printed_configs_and_commands_do_the_same(quick_study, tmp_path, capsys):
    photographs = quick_study.parent / "photographs"
    names = tmp_path / "names.txt"
    names.write_text("\n".join(load_classifier("brodenette").class_names))
    options = ["--images", photographs, "--concepts", "brodenette", "--folder", "s", "--class_names", names]
    assert run("study", *TOWERS, *options, "--epochs", 1, "--print-config") == 0
    towers, rest = capsys.readouterr().out.removeprefix("# towers.yaml\n").split("# fit.yaml\n")
    (tmp_path / "towers.yaml").write_text(towers)
    (tmp_path / "fit.yaml").write_text(rest)
    for line in rest.splitlines():
        words = line.removeprefix("# cefam ").split()
        if words and words[0] in ("features", "probe", "fit"):
            folders = {"TRAIN": quick_study / "photographs/train", "VAL": quick_study / "photographs/val"}
            assert run(*(folders.get(word, word) for word in words)) == 0
    assert "The best checkpoint is s/fit/checkpoints/best.ckpt" in capsys.readouterr().out
    assert yaml.safe_load(rest)["model"]["background"] == "brodenette"
    trained = Trained.read("s", load_classifier("brodenette", class_names=names.read_text().split("\n")))
    assert trained.probe.manifest.top == Trained.read(quick_study).probe.manifest.top


def test_other_class_names_are_another_study(quick_study, tmp_path, capsys):
    folder = shutil.copytree(quick_study, tmp_path / "study", symlinks=True)
    names = tmp_path / "names.txt"
    names.write_text("\n".join(f"class {n}" for n in range(load_classifier("brodenette").num_classes)))
    options = ["--images", quick_study.parent / "photographs", "--concepts", "brodenette", "--folder", folder]
    given = [*options, "--epochs", 2, "--pages", 2, "--device", "cpu", "--class_names", names]
    assert run("study", *TOWERS, *given) == 1
    assert "other inputs or options" in capsys.readouterr().err


def test_shards_are_refused_before_anything_is_written(prepared, tmp_path, capsys):
    folder = tmp_path / "study"
    assert run("study", *TOWERS, "--images", prepared / "train", "--concepts", "brodenette", "--folder", folder) == 1
    assert "a study takes a folder of image files" in capsys.readouterr().err
    assert not folder.exists()


def test_a_function_without_an_annotation_is_refused_at_the_start(quick_study, tmp_path, capsys, monkeypatch):
    """Its artefact could not be read: an artefact may build networks, and call nothing else."""
    monkeypatch.syspath_prepend(tmp_path)
    code = "from cefam import load_classifier\n\n\ndef scenes():\n    return load_classifier('brodenette')\n"
    (tmp_path / "net_of_mine.py").write_text(code)
    options = ["--images", quick_study.parent / "photographs", "--concepts", "brodenette", "--folder", tmp_path / "s"]
    assert run("study", "--classifier", "net_of_mine.scenes", "--vlm", "brodenette", *options) == 1
    assert "annotated to return one (`def birds() -> nn.Module`)" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


def test_the_stages_of_a_wrapped_classifier_are_the_ones_that_are_marked(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "two_stages.py").write_text(
        "from cefam import FrozenClassifier, load_classifier\n\n\ndef scenes() -> FrozenClassifier:\n"
        "    return load_classifier('brodenette', stages=['layer2', 'layer4'])\n"
    )
    assert run("stages", "two_stages.scenes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if line.startswith("*")] == ["layer2", "layer4"]
    assert len(lines) > 4


def test_few_words_compete_with_a_background_that_is_not_shown(tmp_path):
    classifier, vlm = load_classifier("brodenette"), load_vlm("brodenette")
    few = ConceptSet.from_words(["red", "striped wing"])
    concepts = with_background(few, "brodenette").embed(vlm)
    assert len(concepts) == 78  # 77 of Brodenette, of which "red" is there already
    assert {concept.category for concept in concepts.concepts[2:]} == {BACKGROUND}
    explainer = Explainer(classifier, fill(Translator(classifier.channels, 64), 3), concepts)
    images = torch.rand(2, 3, 96, 96)
    alone = Explainer(classifier, explainer.translator, few.embed(vlm))
    assert alone.scores(images).sum(dim=1).tolist() == pytest.approx([1, 1])
    assert explainer.scores(images)[:, :2].sum(dim=1).max() < 1
    for explanation in explainer.explain(images):
        assert {part.concept.word for part in explanation} == {"red", "striped wing"}
    many = ConceptSet.from_words([f"word {n}" for n in range(100)])
    assert with_background(many) is many
    trained = Trained(classifier, explainer.translator, concepts)
    assert Trained.read(trained.write(tmp_path / "a")).concepts.shown == [0, 1]
