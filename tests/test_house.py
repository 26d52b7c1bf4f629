"""The plan of the house as tests: who may import whom, what is installed, and that the README's commands are real."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from types import ModuleType

import pytest
import torchvision
from PIL import Image

ROOT = Path(__file__).parent.parent
# From the ground up. A layer may import those before it, and itself; nothing climbs. docs/reference/design.md draws it.
LAYERS = (
    ("errors",),
    ("concepts.categories",),
    ("settings", "io", "images.pictures", "pairs"),
    ("concepts", "images", "translator", "metrics", "training.schedule", "brodenette", "doctor.doubts"),
    ("explanations",),
    ("towers",),
    ("probe.stored",),
    ("attribution",),
    ("datasets", "trained", "doctor"),
    ("probe",),
    ("methods",),
    ("evaluation",),
    ("report", "exchange", "interventions", "training.trainer_checks"),
    ("training", "evaluation.module"),
    ("datamodules", "callbacks"),
    ("studies",),
    ("commands",),
)
# Lightning begins with what a Trainer runs.
WITH_LIGHTNING = (
    "training",
    "training.trainer_checks",
    "evaluation.module",
    "datamodules",
    "callbacks",
    "studies",
    "commands",
)
WITHOUT_TORCH = (
    "errors",
    "settings",
    "io",
    "images.pictures",
    "concepts.vocabularies",
    "doctor.doubts",
    "brodenette",
    "datasets",
)
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}


def files_of(room):
    """The files of a room; those that have a layer of their own are not among its folder's."""
    path = ROOT / "cefam" / room.replace(".", "/")
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
    return [file for file in files if layer_of_file(file) == room]


def layer_of_file(path):
    parts = path.relative_to(ROOT / "cefam").with_suffix("").parts
    return room_of(".".join(("cefam", *parts)))


def imported_names(room):
    """Whole dotted names that a room imports, also for type checkers."""
    for path in files_of(room):
        yield from names_of(path)


def names_of(path):
    """The same of one file."""
    package = ["cefam", *path.relative_to(ROOT / "cefam").with_suffix("").parts][:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(name):
    """The room of a dotted name of cefam, or ``None``."""
    parts = name.split(".")
    if parts[0] != "cefam" or len(parts) < 2:
        return None
    file = ".".join(parts[1:3])
    return file if file in LEVEL else parts[1]


@pytest.mark.parametrize("room", LEVEL)
def test_arrows_point_down(room):
    names = [name for name in imported_names(room) if room_of(name) in LEVEL and room_of(name) != room]
    climbing = {name for name in names if LEVEL[room_of(name)] >= LEVEL[room]}
    assert not climbing, f"{room} may not import {sorted(climbing)}: see docs/reference/design.md"
    if room not in WITH_LIGHTNING:
        assert not [name for name in imported_names(room) if name.split(".")[0] in ("lightning", "pytorch_lightning")]


def test_every_room_has_its_layer():
    rooms = {
        path.stem for path in (ROOT / "cefam").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert rooms - {"__init__", "__main__"} == {room for room in LEVEL if "." not in room}


def test_no_file_imports_itself_over_others():
    """No circle between files, whatever stands inside of functions."""
    files = {}
    for path in (ROOT / "cefam").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    arrows = {}
    for module, path in files.items():
        arrows[module] = set()
        for name in names_of(path):
            target = name if name in files else name.rpartition(".")[0]
            if target in files and target not in (module, "cefam"):
                arrows[module].add(target)
    while True:
        free = {module for module, targets in arrows.items() if not targets & set(arrows)}
        if not free:
            break
        arrows = {module: targets for module, targets in arrows.items() if module not in free}
    assert not arrows, f"a circle between {sorted(arrows)}"


def test_files_and_functions_are_short():
    """350 lines a file, 60 a function; longer ones say why in their docstring ("Long: ...")."""
    for path in [
        *(ROOT / "cefam").rglob("*.py"),
        *(ROOT / "datamodules").glob("*.py"),
        *(ROOT / "callbacks").glob("*.py"),
    ]:
        text = path.read_text()
        tree = ast.parse(text)
        if "Long:" not in (ast.get_docstring(tree) or ""):
            assert text.count("\n") <= 350, path
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                docstring = ast.get_docstring(node) or ""
                lines = node.end_lineno - node.lineno + 1 - docstring.count("\n")
                assert lines <= 60 or "Long:" in docstring, f"{path}: {node.name}"


def in_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_lower_rooms_stand_without_lightning_and_the_ground_without_torch():
    lower = ", ".join(f"cefam.{room}" for room in LEVEL if room not in WITH_LIGHTNING)
    result = in_process(f"import sys, {lower}; sys.exit('lightning.pytorch' in sys.modules)")
    assert result.returncode == 0, result.stderr
    ground = ", ".join(f"cefam.{room}" for room in WITHOUT_TORCH)
    result = in_process(f"import sys, {ground}, cefam.commands.prepare; sys.exit('torch' in sys.modules)")
    assert result.returncode == 0, result.stderr


def test_importing_cefam_loads_neither_torch_nor_lightning():
    result = in_process("import sys, cefam; sys.exit('torch' in sys.modules or 'lightning' in sys.modules)")
    assert result.returncode == 0, result.stderr
    assert in_process("import cefam; cefam.ConceptSett").stderr.count("its public names are")


@pytest.mark.processes
def test_the_wheel_holds_the_folders_and_works_alone(tmp_path):
    shutil.rmtree(ROOT / "build" / "lib", ignore_errors=True)  # files of an earlier build would get into the wheel
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("cefam/")}
        tops = {name.split("/")[0] for name in archive.namelist()}
    expected = {
        path.relative_to(ROOT).as_posix()
        for folder in ("cefam", "cefam/datamodules", "cefam/callbacks", "cefam/configs")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    assert held == expected
    assert {top for top in tops if not top.endswith(".dist-info")} == {"cefam"}
    # An environment of its own that sees this one's dependencies, but not its editable cefam.
    venv.create(tmp_path / "env", with_pip=False)
    (site,) = (tmp_path / "env").glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    dependencies = Path(pytest.__file__).parent.parent
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    python = tmp_path / "env" / "bin" / "python"
    arguments = ["-m", "cefam", "fit", "--config", "train/resnet50_clip", "--print_config"]
    result = subprocess.run(
        [python, *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "cefam.datamodules.ImagesData" in result.stdout
    where = subprocess.run(
        [python, "-c", "import cefam; print(cefam.__file__)"], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert str(tmp_path) in where.stdout


def commands_of(page):
    """Commands of ``cefam``, train.py and evaluate.py in a page's shell blocks, continuation lines joined."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    ours = ("cefam ", "python train.py", "python evaluate.py")
    return [line for line in lines if line.startswith(ours) and line != "cefam --help"]


PAGES = [
    "README.md",
    "docs/guide/your_classifier.md",
    "docs/guide/data.md",
    "docs/guide/training.md",
    "docs/guide/evaluating.md",
    "docs/guide/explaining.md",
    "docs/reference/methods.md",
    "examples/real_photos/README.md",
]
COMMANDS = [(page, line) for page in PAGES for line in commands_of(page)]


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=[line[:60] for _, line in COMMANDS])
def test_every_command_of_the_pages_parses(page, line, monkeypatch, capsys, tmp_path):
    """Whole runs of these commands stand in test_commands.py; here every option that a page names must exist."""
    from cefam.commands import main

    text = (ROOT / "docs/guide/training.md").read_text()
    for name, content in re.findall(r"`(my_towers\.yaml)`:\n\n```yaml\n(.*?)```", text, flags=re.DOTALL):
        (tmp_path / name).write_text(content)  # files that the page tells its reader to write
    if page.startswith("examples"):
        monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    arguments = (
        words[1:] if words[0] == "cefam" else [words[1].replace("train.py", "fit").removesuffix(".py"), *words[2:]]
    )
    mine = ModuleType("my_net")  # the file that the page tells its reader to write
    mine.birds = torchvision.models.resnet18
    monkeypatch.setitem(sys.modules, "my_net", mine)
    if words[:2] == ["cefam", "study"]:  # the configs that it prints depend on these
        Path("photographs").mkdir()
        Image.new("RGB", (8, 8)).save("photographs/a.png")
        Path("classes.txt").write_text("\n".join(map(str, range(1000))))
    try:
        status = main([*arguments, "--print_config"])
    except SystemExit as end:
        status = end.code
    assert status == 0
    assert capsys.readouterr().out


def test_every_test_that_the_ledger_names_exists():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    files = {path.stem for path in (ROOT / "tests").glob("*.py")}
    named = set(re.findall(r"\btest_\w+", (ROOT / "docs" / "reference" / "conformance.md").read_text()))
    assert not {name for name in named if name not in files and f"def {name}" not in tests}


def test_nothing_tells_where_it_was_written():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    for name in listed:
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yaml", ".cff", ".txt")
            and path.is_file()
            and path != Path(__file__)
        ):
            text = path.read_text(encoding="utf-8")
            assert not re.search(r"(?<![\w.])/(?:home|root|Users|work|mnt)/\w", text), name
            assert "files.pythonhosted" not in text, name
