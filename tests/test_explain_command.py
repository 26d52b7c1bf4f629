"""``cefam explain``: pages, summaries and JSON of photographs, and what it refuses."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.commands import run


@pytest.fixture
def explain(trained, world, monkeypatch):
    """Run the command on this artefact, whose VLM is a file, and so at hand."""

    def started(*arguments):
        return run("explain", *arguments, "--artefact", trained / "artefact", "--num_channels", 3, "--device", "cpu")

    return started


@pytest.fixture
def photograph(world):
    return world / "images/val/class0/000.png"


def test_one_photograph(explain, photograph, capsys):
    assert explain(photograph, "--out", "x.html") == 0
    said = capsys.readouterr().out
    assert "x.html" in said
    assert "%)" in said.splitlines()[0]
    assert "VLM score" in Path("x.html").read_text()
    assert explain(photograph, "--out", "x.html") == 1
    assert "x.html already exists" in capsys.readouterr().err
    assert explain(photograph, "--out", "x.html", "--overwrite") == 0
    assert explain(photograph) == 0
    assert Path("runs/explain/000.png.html").is_file()


def test_the_page_is_opened(explain, photograph, monkeypatch):
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    assert explain("--open", photograph, "--out", "x.html") == 0
    assert opened == [Path("x.html").resolve().as_uri()]


def test_json_in_a_pipe(explain, photograph, capsys):
    texts = ["--concept", "red", "--concept", "striped fur", "--concept=[blue]"]
    assert explain(photograph, "--json", "-", "--out", "x.csv", "--target", "3", *texts) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"] == 3
    assert {part["word"] for part in found["concepts"]} == {"red", "striped fur", "blue"}
    assert Path("x.csv").is_file()


def test_a_folder_gets_a_page_each_and_an_index(explain, world, capsys):
    folder = world / "images/val"
    assert explain(folder, "--out", "pages", "--json", "all.jsonl", "--top_k", 2) == 0
    index = Path("pages/index.html").read_text()
    pages = sorted(path.name for path in Path("pages").glob("*.png.html"))
    assert len(pages) == 11
    assert all(f'href="{name}"' in index for name in pages)
    assert index.count("data:image/jpeg") == 11  # a card each
    assert len(Path("all.jsonl").read_text().splitlines()) == 11
    assert not list(Path("pages").glob("journal*"))
    assert explain(folder, "--out", "pages") == 1
    assert "already holds explanations" in capsys.readouterr().err


def test_a_stopped_folder_is_taken_up(explain, world, capsys, monkeypatch):
    from cefam.commands import explain as command

    folder, written = world / "images/val", []
    usual = command._write

    def stopping(*arguments):
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(arguments)
        return usual(*arguments)

    monkeypatch.setattr(command, "_write", stopping)
    assert explain(folder, "--out", "pages", "--top_k", 1) == 130
    assert not Path("pages/index.html").exists()
    first = {path: path.stat().st_mtime_ns for path in Path("pages").glob("*.html")}
    assert len(first) == 4
    monkeypatch.setattr(command, "_write", usual)
    assert explain(folder, "--out", "pages", "--top_k", 1, "--method", "ce-fam") == 1
    assert "the work of a run with other inputs or options" in capsys.readouterr().err
    assert explain(folder, "--out", "pages", "--top_k", 1) == 0
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert len(list(Path("pages").glob("*.html"))) == 12


def test_why_not(explain, photograph, capsys):
    assert explain(photograph, "--json", "-", "--out", "a.json") == 0
    predicted = json.loads(capsys.readouterr().out)["predicted"]
    assert explain(photograph, "--why-not", (predicted + 1) % 10, "--out", "why.html", "--top_k", 3) == 0
    said = capsys.readouterr().out
    assert "patches" in said or "region is empty" in said
    assert "Hiding regions until the decision changes" in Path("why.html").read_text()
    assert explain(photograph, "--why-not", predicted, "--out", "again.html") == 1
    assert "name a class that it is not taken for" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png"], "There is no photograph or folder none.png"),
        (["text.png"], "text.png cannot be read"),
        (["good.png", "--target", "ostrich"], "give the index of 'ostrich'"),
        (["good.png", "--target", "10"], "There is no class 10"),
        (["good.png", "--out", "x.docx"], "x.docx has the extension '.docx': a file is one of .html"),
        (["good.png", "--concepts", "empty.txt"], "needs at least one concept"),
        (["good.png", "--concepts", "none.txt"], "There is no concept set or file 'none.txt'"),
        (["good.png", "--concept", "word " * 40], "shorten the concept"),
        (["good.png", "--concept", "a", "--concepts", "awa2"], "Name either `--concepts`"),
        (["good.png", "good.png"], "Two photographs are called good.png"),
        (["good.png", "other.png", "--out", "x.html"], "x.html is a file, and 2 photographs are explained"),
        (["good.png", "--why-not", "1", "--out", "x.json"], "in one .html file"),
        (
            ["good.png", "--why-not", "1", "--out", "x.html", "--every_stage"],
            "do not apply to `--why-not`: leave them out",
        ),
        (
            ["good.png", "--why-not", "1", "--out", "x.html", "--colormap", "grey"],
            "do not apply to `--why-not`: leave them out",
        ),
        (["good.png", "--colormap", "jet"], "colormap"),
        (["good.png", "--top_k", "0"], "top_k must be at least 1"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(explain, photograph, capsys, arguments, message):
    for name in ("good.png", "other.png"):
        Image.open(photograph).save(name)
    Path("text.png").write_text("no picture")
    Path("empty.txt").write_text("\n\n")
    before = set(Path().rglob("*"))
    status = explain(*arguments)
    assert status in (1, 2)
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.count("\n") == 0
    assert {path for path in set(Path().rglob("*")) - before if path.is_file()} == set()


def test_without_an_artefact_it_says_how_to_make_one(photograph, capsys):
    assert run("explain", photograph) == 1
    assert "run `cefam demo` first" in capsys.readouterr().err


def test_regions_of_all_stages(explain, photograph, capsys):
    regions, hint = {}, "Regions would be more exact with a probe"
    for method, chosen in (("ce-fam", ["--method", "ce-fam"]), ("beyond", [])):
        assert explain(photograph, *chosen, "--json", "-", "--out", f"{method}.html") == 0
        said = capsys.readouterr()
        assert (hint in said.err) == (method == "beyond")
        found = json.loads(said.out)
        regions[method] = {part["word"]: part["region"] for part in found["concepts"]}
        every = {part["region_of"] for part in found["concepts"]}
        assert every == {"all stages"} if method == "beyond" else every <= set(found["stages"])
    assert regions["ce-fam"].keys() == regions["beyond"].keys()
    assert regions["ce-fam"] != regions["beyond"]
    assert "at all stages." in Path("beyond.html").read_text()
    assert explain(photograph, "--method", "ce-fam", "--probe", "probe", "--out", "x.html") == 1
    assert 'Only the method "beyond" takes a probe' in capsys.readouterr().err
    assert explain(photograph, "--probe", "nowhere", "--out", "x.html") == 1
    assert "nowhere" in capsys.readouterr().err
