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
# Page -> title and source, by section of the navigation.
SECTIONS = {
    "Guide": {
        "index": ("cefam", "README.md"),
        "first_steps": ("First steps", "docs/guide/first_steps.md"),
        "your_classifier": ("Your classifier", "docs/guide/your_classifier.md"),
        "data": ("Data", "docs/guide/data.md"),
        "training": ("Training", "docs/guide/training.md"),
        "evaluating": ("Evaluating", "docs/guide/evaluating.md"),
        "explaining": ("Explaining", "docs/guide/explaining.md"),
    },
    "Reference": {
        "conformance": ("Conformance", "docs/reference/conformance.md"),
        "methods": ("Methods", "docs/reference/methods.md"),
        "extending": ("Extending", "docs/reference/extending.md"),
        "design": ("Design", "docs/reference/design.md"),
        "performance": ("Performance", "docs/reference/performance.md"),
    },
    "Research": {
        "beyond": ("Beyond the paper", "docs/research/beyond.md"),
        "which": ("Which concepts", "docs/research/which.md"),
        "contributions": ("Contributions", "docs/research/contributions.md"),
        "brodenette": ("Brodenette", "docs/research/brodenette.md"),
        "results": ("Results", "docs/research/results.md"),
        "real_photos": ("Real photographs", "examples/real_photos/README.md"),
    },
    "Project": {
        "contributing": ("Contributing", "CONTRIBUTING.md"),
        "changelog": ("Changelog", "CHANGELOG.md"),
    },
}
PAGES = {page: about for pages in SECTIONS.values() for page, about in pages.items()}
FRAME = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; --line: #8884; }
body { margin: 0 auto; max-width: 62rem; padding: 0 1rem 4rem; font: 1rem/1.55 system-ui, sans-serif; }
nav { padding: .9rem 0; border-bottom: 1px solid var(--line); }
nav div { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
nav b { min-width: 5.5rem; }
img { max-width: 100%; }
pre { overflow-x: auto; padding: .7rem .9rem; border: 1px solid var(--line); border-radius: .4rem; line-height: 1.4; }
code { font-size: .88em; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border: 1px solid var(--line); padding: .25rem .6rem; text-align: left; vertical-align: top; }
</style></head>
<body><nav>{% for section, pages in sections.items() %}<div><b>{{ section }}</b>
{% for page, about in pages.items() %}<a href="{{ page }}.html">{{ about[0] }}</a>{% endfor %}
{% if section == "Reference" %}<a href="api/cefam.html">API</a>{% endif %}</div>{% endfor %}</nav>
<main>{{ body }}</main></body></html>
""")


def build(folder: Path) -> None:
    """Write the site into a folder."""
    build_pages(folder)
    build_reference(folder / "api")


def build_pages(folder: Path) -> None:
    """Write the pages, without the API reference."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copytree(ROOT / "docs" / "pictures", folder / "pictures", dirs_exist_ok=True)
    places = {place: f"{page}.html" for page, (_, place) in PAGES.items()}
    extras = ["fenced-code-blocks", "tables", "header-ids", "cuddled-lists"]
    for page, (title, place) in PAGES.items():
        text = (ROOT / place).read_text(encoding="utf-8")
        body = markdown2.markdown(text, extras=extras)
        body = re.sub(r'(href|src)="([^"#:]+)(#[^"]*)?"', lambda m, p=place: _link(m, p, places), body)
        (folder / f"{page}.html").write_text(FRAME.render(title=title, sections=SECTIONS, body=body), encoding="utf-8")


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
