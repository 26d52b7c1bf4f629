"""An explanation as a figure for print and slides: the photograph, the leading region as a spotlight, and signed bars."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cefam.explanations.spotlight import spotlight
from cefam.explanations.text import leading, sentence, signed, spotlit
from cefam.explanations.types import ConceptExplanation, Findings

FOR, AGAINST = (
    "#2166ac",
    "#e08214",
)  # blue and orange: safe for color blindness; in grayscale, the sign distinguishes them
BARS = 8
DPI, SIDE = 300, 900  # of a saved figure; pixels of a picture's longer side


def draw(explanation: Findings) -> Figure:
    """Draw the three parts of a page's first screen, with the same sentence above them."""
    shown = leading(explanation)
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    figure.suptitle(sentence(explanation), fontsize=10, wrap=True)
    plain, lit, bars = figure.subplots(1, 3, width_ratios=(3, 3, 4))
    lead = spotlit(explanation)
    for axes, part in ((plain, None), (lit, lead)):
        axes.imshow(spotlight(explanation.photograph, part, SIDE))
        axes.set_axis_off()
    plain.set_title(explanation.name, fontsize=8)
    lit.set_title(f"where {lead.concept.word} is seen" if lead else "no present and trusted concept", fontsize=8)
    _bars(bars, (shown or explanation.concepts)[:BARS])
    return figure


def _bars(axes: Axes, parts: list[ConceptExplanation]) -> None:
    """Draw one bar per concept on the fixed axis from -1 to 1, labeled with its contribution; negative bars are hatched."""
    values = [part.contribution or 0.0 for part in parts]
    places = range(len(parts))
    drawn = axes.barh(places, values, color=[AGAINST if value < 0 else FOR for value in values])
    for bar, value in zip(drawn, values, strict=True):
        bar.set_hatch("///" if value < 0 else "")
    names = [part.name + ("" if part.present else " (absent)") for part in parts]
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlim(-1, 1)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    for place, part in zip(places, parts, strict=True):
        axes.text(1.03, place, signed(part.contribution), fontsize=7, va="center", clip_on=False)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_xlabel("contribution: share of the class probability", fontsize=8)
    axes.spines[["top", "right", "left"]].set_visible(False)
