"""Build the documentation as a site: ``python docs/site.py [folder]`` (or ``make docs``).

The pages are those of the repository (README, docs, the examples' page, CONTRIBUTING, CHANGELOG), with their pictures; the API
reference is made by pdoc from the docstrings, whose examples are doctests. The start page is ``index.html``.
"""

import re
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pdoc
from jinja2 import Template
from pdoc.render_helpers import markdown2

import cefam

ROOT = Path(__file__).parent.parent
PACKAGE = Path(cefam.__file__).parent
PAGES = {
    "index": ("cefam", "README.md"),
    "design": ("Design", "docs/reference/design.md"),
    "extending": ("Extending", "docs/reference/extending.md"),
    "data": ("Data", "docs/guide/data.md"),
    "clusters": ("Clusters", "docs/guide/training.md"),
    "dashboards": ("Dashboards", "docs/guide/training.md"),
    "explaining": ("Explaining", "docs/guide/explaining.md"),
    "contributions": ("Contributions", "docs/research/contributions.md"),
    "methods": ("Methods", "docs/reference/methods.md"),
    "results": ("Results", "docs/research/results.md"),
    "beyond": ("Beyond the paper", "docs/research/beyond.md"),
    "conformance": ("Conformance", "docs/reference/conformance.md"),
    "brodenette": ("Brodenette", "docs/research/brodenette.md"),
    "performance": ("Performance", "docs/reference/performance.md"),
    "real_photos": ("Real photographs", "examples/real_photos/README.md"),
    "contributing": ("Contributing", "CONTRIBUTING.md"),
    "changelog": ("Changelog", "CHANGELOG.md"),
}
FRAME = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; }
body { margin: 0 auto; max-width: 62rem; padding: 0 1rem 4rem; font: 1rem/1.55 system-ui, sans-serif; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; padding: .9rem 0; border-bottom: 1px solid var(--line); }
img { max-width: 100%; }
pre { overflow-x: auto; padding: .7rem .9rem; border: 1px solid var(--line); border-radius: .4rem; line-height: 1.4; }
code { font-size: .88em; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
</style></head>
<body><nav>{% for page, name in pages %}<a href="{{ page }}.html">{{ name }}</a>{% endfor %}<a href="api/cefam.html">API</a></nav>
<main>{{ body }}</main></body></html>
""")


def build(folder: Path) -> None:
    """Write the site into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "docs" / "pictures", folder / "pictures", dirs_exist_ok=True)
    places = {place: f"{page}.html" for page, (_, place) in PAGES.items()}
    listed = [(page, title) for page, (title, _) in PAGES.items()]
    extras = ["fenced-code-blocks", "tables", "header-ids", "cuddled-lists"]
    for page, (title, place) in PAGES.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        body = markdown2.markdown(text, extras=extras)
        body = re.sub(r'(href|src)="([^"#:]+)(#[^"]*)?"', lambda m, p=place: _link(m, p, places), body)
        (folder / f"{page}.html").write_text(FRAME.render(title=title, pages=listed, body=body), encoding="utf-8")
    build_reference(folder / "api")


def _link(match: "re.Match[str]", place: str, places: dict[str, str]) -> str:
    """A link between files of the repository as one between pages; what has no page is named from the repository's root."""
    kind, target, anchor = match[1], match[2], match[3] or ""
    path = (ROOT / place).parent.joinpath(target).resolve()
    try:
        inside = path.relative_to(ROOT).as_posix()
    except ValueError:
        return match[0]
    if inside in places:
        return f'{kind}="{places[inside]}{anchor}"'
    if inside.startswith("docs/pictures/"):
        return f'{kind}="{inside.removeprefix("docs/")}"'
    return f'title="{inside}"'


def build_reference(folder: Path) -> None:
    """Write the API reference: one page per module, and an index."""
    for name in cefam.__all__:
        setattr(cefam, name, getattr(cefam, name))  # public names are loaded on first use; pdoc looks, and does not use
    parts = [path.relative_to(PACKAGE.parent).with_suffix("").parts for path in PACKAGE.rglob("*.py")]
    modules = {".".join(part[:-1] if part[-1] == "__init__" else part) for part in parts} - {"cefam.__main__"}
    # pdoc finds the modules of a package by itself, unless the package says what it offers.
    shown = [name for name in modules if hasattr(import_module(name.rpartition(".")[0] or name), "__all__")]
    pdoc.render.configure(docformat="google")
    pdoc.pdoc(*sorted(shown), output_directory=folder)


if __name__ == "__main__":
    build(Path(sys.argv[1] if len(sys.argv) > 1 else "build/docs"))
