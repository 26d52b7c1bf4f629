"""An explanation as a figure for print: the photograph, signed bars, and the regions of the leading concepts."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cefam.explanations.maps import density, scale
from cefam.explanations.text import signed, title
from cefam.explanations.types import ConceptExplanation, Findings

FOR, AGAINST = (
    "#2166ac",
    "#e08214",
)  # blue and orange: safe for color blindness; in grayscale, the sign distinguishes them
REGIONS, BARS = 4, 12


def draw(explanation: Findings, regions: int = REGIONS) -> Figure:
    """Draw photograph and bars in the first row and the regions of the first concepts in the second, on one scale."""
    shown = explanation.concepts[:regions]
    columns = max(len(shown), 3)
    figure = Figure(figsize=(2.1 * columns, 4.8), layout="constrained")
    figure.suptitle(title(explanation), fontsize=9)
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    picture, bars = above.subplots(1, 2, width_ratios=(1, columns - 1))
    picture.imshow(explanation.photograph.picture)
    picture.set_axis_off()
    _bars(bars, explanation.concepts[:BARS])
    largest = scale(explanation)
    grid = below.subplots(1, columns, squeeze=False)[0]
    for axes in grid:
        axes.set_axis_off()
    for axes, part in zip(grid, shown, strict=False):
        axes.imshow(explanation.photograph.picture)
        region = explanation.photograph.to_size(density(part, part.shown, explanation.baseline).unsqueeze(0))[0]
        drawn = axes.imshow(region.cpu().numpy(), cmap="viridis", vmin=0, vmax=largest, alpha=0.65)
        axes.set_title(f"{part.concept.word}\n{explanation.map_names[part.shown]}, p {part.score:.2g}", fontsize=7)
    if shown:
        legend = below.colorbar(drawn, ax=grid, shrink=0.8)
        legend.set_label("similarity", fontsize=7)
        legend.ax.tick_params(labelsize=6)
    return figure


def _bars(axes: Axes, parts: list[ConceptExplanation]) -> None:
    """Draw one bar per concept, labeled with its contribution; negative bars are hatched."""
    values = [part.contribution or 0.0 for part in parts]
    places = range(len(parts))
    drawn = axes.barh(places, values, color=[AGAINST if value < 0 else FOR for value in values])
    for bar, value in zip(drawn, values, strict=True):
        bar.set_hatch("///" if value < 0 else "")
    names = [part.concept.word + ("" if part.present else " (absent)") for part in parts]
    axes.set_yticks(places, names, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.bar_label(drawn, [signed(part.contribution) for part in parts], fontsize=6, padding=2)
    axes.margins(x=0.2)
    axes.tick_params(axis="x", labelsize=6)
    axes.set_xlabel("contribution: share of the class probability", fontsize=7)
    axes.spines[["top", "right", "left"]].set_visible(False)
