"""An explanation as one self-contained HTML file, which is complete without scripts and loads nothing."""

import base64
import hashlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from cefam import __version__
from cefam.explanations import maps
from cefam.explanations.spotlight import spotlight
from cefam.explanations.text import leading, percent, sentence, signed, spotlit
from cefam.explanations.types import HALF, ConceptExplanation, Findings

FIGURES = 8  # concepts whose region is shown without a script
STOPS = 17  # color stops of a color map
ALPHA = "0 .6 .85 .95 1"  # opacity as a function of the map's value, transparent at 0
THUMBNAIL = 128  # pixels, in a notebook
SIDE = 640  # pixels of the photograph and the spotlight
SMALL = 72  # pixels of a region in a row
ROWS = 12  # rows of the first screen, and of its folded part
CARD, CARD_CONCEPTS = 240, 3  # pixels of a picture in the gallery; concepts named there
LONGEST = 180  # bytes of a page's name; file systems allow 255, including the suffix of a temporary name
PLACES = (("top left", "top", "top right"), ("left", "center", "right"), ("bottom left", "bottom", "bottom right"))


@cache
def environment() -> Environment:
    """The template environment, with autoescaping."""
    # StrictUndefined: a missing variable is an error, not an empty string.
    found = Environment(loader=PackageLoader("cefam.explanations"), autoescape=True, undefined=StrictUndefined)
    found.globals |= {"version": __version__, "percent": percent, "signed": signed, "fingerprint": fingerprint}
    return found


def fingerprint(script: str) -> str:
    """The hash that allows a script in a Content-Security-Policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"


def data_uri(text: str, kind: str) -> str:
    """A text file as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(text.encode()).decode()}"


def page(explanation: Findings, colormap: str = "viridis") -> str:
    """Render the page of an explanation."""
    largest = maps.scale(explanation)
    shown = leading(explanation)
    folded = [part for part in explanation if part not in shown]
    lead = spotlit(explanation)
    parts = [_part(part, explanation, largest) for part in explanation]
    colors = {name: _tables(name) for name in maps.COLORMAPS}
    shades = maps.palette(colormap)[np.linspace(0, 255, STOPS).round().astype(int)]
    kept = ("word", "level", "association", "curve", "present", "maps", "shares")
    place, (height, width) = explanation.photograph.placement, explanation.photograph.size
    share = {
        "left": place.left / width,
        "top": place.top / height,
        "width": place.width / width,
        "height": place.height / height,
    }
    return (
        environment()
        .get_template("page.html")
        .render(
            it=explanation,
            sentence=sentence(explanation),
            plain=maps.jpeg(spotlight(explanation.photograph, None, SIDE)),
            lit=maps.jpeg(spotlight(explanation.photograph, lead, SIDE)),
            lead=lead,
            rows=[_line(part, explanation) for part in shown[:ROWS]],
            folded=[_line(part, explanation) for part in folded[:ROWS]],
            hidden=len(folded),
            parts=parts,
            place={key: f"{100 * value:.4f}" for key, value in share.items()},
            largest=largest,
            teacher=bool(explanation.concepts) and all(part.vlm_score is not None for part in explanation),
            every=bool(explanation.concepts) and all(part.contributions is not None for part in explanation),
            photograph=maps.jpeg(explanation.photograph.picture),
            legend=", ".join(f"rgb({r} {g} {b})" for r, g, b in shades.tolist()),
            tables=colors[colormap],
            alpha=ALPHA,
            colormap=colormap,
            colormaps=maps.COLORMAPS,
            figures=FIGURES,
            stem=Path(explanation.name).stem or "explanation",
            json_uri=data_uri(explanation.to_json(), "application/json"),
            csv_uri=data_uri(explanation.to_csv(), "text/csv"),
            data={
                "parts": [{key: part[key] for key in kept} for part in parts],
                "stages": explanation.map_names,
                "largest": largest,
                "colormaps": colors,
            },
            script="page.js",
        )
    )


def _part(part: ConceptExplanation, explanation: Findings, largest: float) -> dict[str, Any]:
    """Template variables of one concept, with its maps as images."""
    densities = [maps.density(part, stage, explanation.baseline) for stage in range(len(part.maps))]
    tops = [float(values.max()) or 1.0 for values in densities]
    # Each image uses the full 8-bit range; the page scales its brightness to the common scale.
    pictures = [maps.png(maps.grey(values, top)) for values, top in zip(densities, tops, strict=True)]
    most = max((abs(other.contribution or 0.0) for other in explanation), default=0.0) or 1.0
    return {
        **vars(part),
        "word": part.concept.word,
        "category": part.concept.category,
        "stage_name": explanation.stages[part.stage],
        "bar": 100 * (part.contribution or 0.0) / most,
        "maps": pictures,
        "shares": [round(top / largest, 4) for top in tops],
        "level": part.shown,
        "level_name": explanation.map_names[part.shown],
        "shown": pictures[part.shown],
        "where": where(part),
    }


def _line(part: ConceptExplanation, explanation: Findings) -> dict[str, Any]:
    """Template variables of a row on the first screen; bars have a fixed axis from -1 to 1."""
    value = part.contribution
    clipped = max(-1.0, min(1.0, value or 0.0))
    return {
        "word": part.name,
        "category": part.concept.category,
        "value": value,
        "clipped": value is not None and clipped != value,
        "left": 50 + 50 * min(clipped, 0.0),
        "width": 50 * abs(clipped),
        "against": clipped < 0,
        "note": "absent" if not part.present else "doubtful" if part.distrust else "",
        "why": part.distrust,
        "sign_unsure": part.sign_unsure,
        "picture": maps.jpeg(spotlight(explanation.photograph, part, 2 * SMALL)),
        "where": where(part),
    }


def where(part: ConceptExplanation) -> str:
    """Describe a region in words, as alternative text."""
    found = part.maps[part.shown].cpu().numpy()
    if not found.max() > 0:
        return "nowhere"
    row, column = np.unravel_index(int(found.argmax()), found.shape)
    name = PLACES[3 * int(row) // found.shape[0]][3 * int(column) // found.shape[1]]
    return f"strongest at the {name}, {100 * float((found > HALF * found.max()).mean()):.0f} % of the view above half of that"


def _tables(colormap: str) -> list[str]:
    """Red, green and blue of a color map, as table values of an SVG filter."""
    shades = maps.palette(colormap)[np.linspace(0, 255, STOPS).round().astype(int)] / 255
    return [" ".join(f"{value:.3f}" for value in shades[:, channel]) for channel in range(3)]


def notebook(explanation: Findings) -> str:
    """A static summary for a notebook: the sentence, both pictures and rows with bars; no script, readable on any background."""
    shown = leading(explanation) or list(explanation)
    rows = [_line(part, explanation) for part in shown]
    pictures = [
        ("the photograph", None),
        *((f"where {part.concept.word} is seen", part) for part in [spotlit(explanation)] if part),
    ]
    return (
        environment()
        .get_template("notebook.html")
        .render(
            scope=f"cefam-{hashlib.sha256(repr(rows).encode()).hexdigest()[:8]}",
            sentence=sentence(explanation),
            pictures=[
                (alt, maps.jpeg(spotlight(explanation.photograph, part, 2 * THUMBNAIL))) for alt, part in pictures
            ],
            warnings=explanation.warnings,
            rows=rows,
        )
    )


def page_names(names: Sequence[str]) -> dict[str, str]:
    """File names of the photographs' pages in one flat folder, unique even on case-insensitive file systems."""
    flat = {name: name.replace("/", "__") for name in names}
    count = Counter(page.casefold() for page in flat.values())
    return {
        name: f"{page}.html"
        if count[page.casefold()] == 1 and len(page.encode()) <= LONGEST
        else f"{page.encode()[:LONGEST].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}.html"
        for name, page in flat.items()
    }


def entry(explanation: Findings, link: str, truth: str | None = None) -> dict[str, Any]:
    """The card of an explanation in :func:`index`, in plain types; ``truth`` is the photograph's class, if known."""
    shown = leading(explanation)
    lead = spotlit(explanation)
    return {
        "link": link,
        "photograph": explanation.name,
        "class": explanation.target_name,
        "probability": percent(explanation.probability),
        "result": "" if truth is None else "right" if truth == explanation.predicted_name else "wrong",
        "truth": truth or "",
        "concepts": [part.concept.word for part in shown[:CARD_CONCEPTS]],
        "picture": maps.jpeg(spotlight(explanation.photograph, lead, CARD)),
        "region": f"where the network sees {lead.concept.word}" if lead else "no present and trusted concept",
    }


def index(heading: str, entries: list[dict[str, Any]]) -> str:
    """Render a gallery of pages with the cards of :func:`entry`, to be filtered by class and concept."""
    values = [{"class": [e["class"]], "concept": e["concepts"], "result": [e["result"]]} for e in entries]
    kinds = ("class", "concept", *(["result"] if any(each["result"] for each in entries) else []))
    filters = {name: sorted({value for each in values for value in each[name] if value}) for name in kinds}
    template = environment().get_template("index.html")
    return template.render(title=heading, entries=entries, filters=filters, data=values, script="index.js")
