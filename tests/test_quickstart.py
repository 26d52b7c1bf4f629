"""The quick-start notebook, its cells run in order; and the site, built from what is there."""

import json
import re
import runpy
import sys

import pytest

from tests.commands import ROOT, command


def test_the_notebook_runs(tmp_path, capsys):
    notebook = json.loads((ROOT / "examples" / "quickstart.ipynb").read_text())
    namespace = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert not cell["outputs"], "commit the notebook without outputs"
            exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
    assert namespace["explanation"].probability > 0.3
    assert len(namespace["figure"].axes) == 5
    printed = capsys.readouterr().out
    assert re.search(r"score 0\.\d\d   contribution [+-]0\.\d{3}   seen in layer\d", printed)
    assert "Grad-CAM, class" in printed
    assert "blue bird: 0." in printed


@pytest.mark.soak
def test_the_notebook_with_its_output_runs(capsys):
    notebook = json.loads((ROOT / "examples" / "explaining.ipynb").read_text())
    namespace = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), cell["id"], "exec"), namespace)
    assert namespace["status"] == 0
    assert namespace["comparison"].predicted.predicted_name == "canary"
    assert "with " in capsys.readouterr().out


def test_the_output_of_the_notebook_is_static():
    notebook = json.loads((ROOT / "examples" / "explaining.ipynb").read_text())
    shown = [
        output["data"]["text/html"][0]
        for cell in notebook["cells"]
        for output in cell.get("outputs", [])
        if "text/html" in output.get("data", {})
    ]
    assert shown
    for page in shown:
        assert "<script" not in page
        assert 'src="http' not in page


@pytest.mark.soak
@pytest.mark.processes
def test_the_api_reference_builds_without_a_warning(tmp_path):
    status, printed = command(sys.executable, ROOT / "docs" / "site.py", tmp_path / "site")
    assert status == 0, printed
    assert "Warn" not in printed
    assert "signed contribution" in (tmp_path / "site/api/cefam/attribution/types.html").read_text()
    assert (tmp_path / "site/api/cefam.html").is_file()


def test_links_of_the_site_lead_somewhere(tmp_path):
    site = runpy.run_path(str(ROOT / "docs" / "site.py"))
    site["build_pages"](tmp_path / "site")
    pages = list((tmp_path / "site").glob("*.html"))
    assert len(pages) == len(site["PAGES"])
    for page in pages:
        text = page.read_text()
        for target in re.findall(r'(?:href|src)="([^"#:]+)["#]', text):
            if target == "api/cefam.html":  # built by another test
                continue
            assert (tmp_path / "site" / target).is_file(), f"{page.name}: {target}"
        for target, anchor in re.findall(r'href="([^"#:]*)#([^"]+)"', text):
            there = (tmp_path / "site" / target).read_text() if target else text
            assert f'id="{anchor}"' in there, f"{page.name}: {target}#{anchor}"
