"""``cefam summarize`` and ``cefam doctor``: against literal sums over what is explained, doubts carried on, and what they refuse."""

import json
import math
from pathlib import Path

import pytest
import torch

from cefam import Trained
from cefam.doctor import checkup, doubts
from cefam.explanations.overview import leading_concepts
from cefam.explanations.photograph import Photograph
from tests.commands import run


@pytest.fixture
def artefact(trained, tmp_path):
    """A copy of the trained artefact, so that doubts are kept beside it alone."""
    import shutil

    return shutil.copytree(trained / "artefact", tmp_path / "artefact")


def summarize(artefact, *arguments):
    return run("summarize", *arguments, "--artefact", artefact, "--num_channels", 3, "--device", "cpu", "--top_k", 3)


def test_a_summary_is_the_mean_of_its_explanations(artefact, world, capsys):
    folder = world / "images/val"
    assert summarize(artefact, folder, "--out", "s") == 0
    assert "mean contribution" in capsys.readouterr().out
    written = json.loads(Path("s/summary.json").read_text())
    explainer = Trained.read(artefact).explainer()
    paths = sorted(folder.rglob("*.png"))
    found = {}
    for path in paths:
        for part in explainer.explain([Photograph.open(path, 64)], top_k=3, num_channels=3)[0]:
            found.setdefault(part.concept.word, []).append(part.contribution)
    for concept in written["concepts"]:
        values = found.pop(concept["word"])
        assert concept["images"] == len(values)
        assert concept["share"] == pytest.approx(len(values) / len(paths))
        mean = sum(values) / len(values)
        assert concept["mean"] == pytest.approx(mean, abs=1e-4)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
        assert concept["spread"] == pytest.approx(spread, abs=1e-4)
        assert sum(concept["stages"].values()) == len(values)
    assert found == {}
    page = Path("s/summary.html").read_text()
    assert page.count("<article") == len(written["concepts"])
    assert len(Path("s/summary.csv").read_text().splitlines()) == len(written["concepts"]) + 1


def test_folders_called_like_classes_tell_what_goes_wrong(artefact, world, tmp_path):
    for path in (world / "images/val/class0").iterdir():
        (tmp_path / "set/4").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set/4" / path.name).write_bytes(path.read_bytes())
    assert summarize(artefact, tmp_path / "set", "--out", "s", "--target", "4") == 0
    written = json.loads(Path("s/summary.json").read_text())
    (row,) = written["classes"]
    right, known = map(int, row["right"].split(" of "))
    assert known == row["images"] == len(list((tmp_path / "set/4").iterdir()))
    assert len(written["wrong"]) == known - right


def test_a_summary_is_taken_up_and_not_overwritten(artefact, world, capsys, monkeypatch):
    from cefam.commands import summarize as command

    usual, done = command._explain, []

    def stopping(*arguments):
        if done:
            raise KeyboardInterrupt
        done.append(1)
        return usual(*arguments)

    monkeypatch.setattr(command, "_explain", stopping)
    assert summarize(artefact, world / "images/val", "--out", "s") == 130
    kept = {path: path.stat().st_mtime_ns for path in Path("s/parts").glob("0*.json")}
    assert len(kept) == 1
    monkeypatch.setattr(command, "_explain", usual)
    assert summarize(artefact, world / "images/val", "--out", "s") == 0
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert summarize(artefact, world / "images/val", "--out", "s") == 1
    assert "already holds a summary" in capsys.readouterr().err


def test_leading_concepts_are_ordered_by_their_contribution_over_all_images():
    names = ("number", "word", "category", "contribution", "stage")
    rare, steady, against = (
        dict(zip(names, values, strict=True))
        for values in ((1, "rare", "x", 0.9, "l1"), (2, "steady", "x", 0.5, "l1"), (2, "steady", "x", -0.5, "l2"))
    )
    records = [{"name": "a", "concepts": [rare, steady]}, {"name": "b", "concepts": [against]}]
    first, second = leading_concepts(records)
    assert (first.word, first.mean, first.spread, first.share) == ("steady", 0.0, 0.5, 1.0)
    assert first.stages == {"l1": 1, "l2": 1}
    assert (second.word, second.share, second.largest) == ("rare", 0.5, ["a"])


def test_the_environment_is_in_order(capsys):
    assert run("doctor") == 0
    said = capsys.readouterr().out
    assert "of 40 scenes named" in said
    assert "The environment is in order" in said


def test_a_broken_torch_is_found(capsys, monkeypatch):
    from cefam.towers.classifier import FrozenClassifier

    usual = FrozenClassifier.forward
    monkeypatch.setattr(
        FrozenClassifier, "forward", lambda self, images: usual(self, images.flip(0) if len(images) > 1 else images)
    )
    assert run("doctor") == 1
    assert "1 problem(s): The self-test failed" in capsys.readouterr().err


def test_doubts_are_kept_and_said_in_explanations(artefact, world, prepared, capsys):
    asked = ["doctor", "--artefact", artefact, "--device", "cpu", "--images"]
    assert run(*asked, prepared / "broden") == 0
    said = capsys.readouterr().out
    verdict = next(line for line in said.splitlines() if "doubtful, judged from" in line)
    assert said.index(verdict) < said.index("Environment")
    place = doubts.place_of(artefact)
    kept = json.loads(place.read_text())
    assert verdict.startswith(f"{len(Trained.read(artefact).doubts)} of ")
    assert f"judged from 14 photographs; the list is in {place}" in verdict
    assert kept["measured"] == {"photographs": 14, "vlm": True, "masks": True}
    assert run(*asked, prepared / "broden") == 1
    assert "already exists" in capsys.readouterr().err
    trained = Trained.read(artefact)
    number = trained.concepts.numbers[0]
    doubts.write(
        artefact, doubts.key_of(trained.classifier, trained.translator, trained.concepts), {number: "it is a test"}, {}
    )
    again = Trained.read(artefact)
    assert again.doubts == {number: "it is a test"}
    explanation = again.explainer().explain(torch.rand(1, 3, 64, 64), top_k=99)[0]
    assert [part.distrust for part in explanation if part.distrust] == ["it is a test"]
    assert trained.concepts.words[0] in " ".join(explanation.warnings)
    assert "it is a test" in explanation.save("x.html").read_text()
    doubts.write(artefact, "another set", {number: "it is a test"}, {})
    assert Trained.read(artefact).doubts == {}
    place.write_text("{}")
    assert run("explain", world / "images/val/class0/000.png", "--artefact", artefact) == 1
    assert "is not a file of cefam doubts" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--count", 3], "count must be at least 10"),
        (["--artefact", "none"], "There is no artefact none"),
        (["--images", "none"], "There is no photograph or folder none"),
    ],
)
def test_bad_questions(artefact, capsys, arguments, message):
    if "--images" in arguments:
        arguments = [*arguments, "--artefact", artefact]
    assert run("doctor", *arguments) == 1
    assert message in capsys.readouterr().err


def test_rates_and_correlations_are_literal_ones():
    torch.manual_seed(0)
    said, other = torch.randn(60, 3), torch.randn(60, 3)
    there = torch.randint(-1, 2, (60, 3))
    there[:, 2] = 0
    for column in range(3):
        expected = torch.corrcoef(torch.stack([said[:, column], other[:, column]]))[0, 1]
        assert float(checkup.correlations(said, other)[column]) == pytest.approx(float(expected), abs=1e-6)
        for state, rates in zip((0, 1), checkup.called_present(said, there), strict=True):
            chosen = [float(said[n, column]) >= 0 for n in range(60) if int(there[n, column]) == state]
            if len(chosen) < 10:
                assert math.isnan(float(rates[column]))
            else:
                assert float(rates[column]) == pytest.approx(sum(chosen) / len(chosen))


@pytest.mark.parametrize("shards", [True, False])
def test_photographs_are_read_batch_by_batch(shards, artefact, world, prepared, monkeypatch):
    """However many there are, no more than a batch of them is held."""
    from cefam.commands import doctor as verb
    from cefam.commands._explaining import open_artefact

    monkeypatch.setattr(verb, "BATCH", 2)
    opened, _ = open_artefact(str(artefact), None, "cpu", None, None)
    read, photograph = [], Photograph.of

    def counted(*arguments, **options):
        read.append(1)
        return photograph(*arguments, **options)

    monkeypatch.setattr(Photograph, "of", counted)
    place = prepared / "broden" if shards else world / "images/val"
    for number, (views, _) in enumerate(verb._batches(opened, [str(place)], 9), start=1):
        assert len(read) == min(2 * number, 9)
        assert len(views) == (2 if number < 5 else 1)
    assert len(read) == 9
