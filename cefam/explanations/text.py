"""Terminal summary of an explanation: one line per concept, with its contribution as a number and a bar."""

from cefam.explanations.types import ConceptExplanation, Findings

BAR = 16  # cells of the longest bar
WIDTH = 80
LEADING = 2  # concepts that a sentence names
MATTERS = 0.02  # contributions below this are not named in a sentence
FOR, AGAINST = "█", "▒"  # distinguishable without color


def summary(explanation: Findings, width: int = WIDTH) -> str:
    """Class, probability, and the concepts with their contributions, in lines of at most ``width``."""
    return "\n".join(line for line, _ in lines(explanation, width))


def lines(explanation: Findings, width: int = WIDTH) -> list[tuple[str, str]]:
    """The lines of a summary, each with its kind: "title", "for", "against", "absent" or ""."""
    found = [(_cut(title(explanation), width), "title")]
    largest = max((abs(part.contribution or 0.0) for part in explanation), default=0.0) or 1.0
    longest = max((len(part.name) for part in explanation), default=0)
    # Sign, number and score need 27 characters; in a narrow terminal, first the bar is shortened, then the words.
    bar = max(0, min(BAR, width - 28 - min(longest, 12)))
    room = max(4, min(longest, width - 28 - bar))
    for part in explanation:
        kind = "absent" if not part.present else "against" if (part.contribution or 0.0) < 0 else "for"
        found.append((_cut(_line(part, room, bar, largest), width), kind))
    found += [(_cut(f"! {warning}", width), "") for warning in explanation.warnings]
    return found


def title(explanation: Findings) -> str:
    """The photograph's name and the explained class, and the predicted class if it is another one."""
    words = f"{explanation.name}: {explanation.target_name} ({percent(explanation.probability)})"
    if explanation.target != explanation.predicted:
        words += f", predicted {explanation.predicted_name} ({percent(explanation.classes[0][1])})"
    return words


def leading(explanation: Findings) -> list[ConceptExplanation]:
    """The concepts that are present and not doubtful, in the order of the explanation."""
    return [part for part in explanation if part.present and not part.distrust]


def _decisive(explanation: Findings) -> tuple[list[ConceptExplanation], list[ConceptExplanation]]:
    """The leading concepts of sure sign that speak for the class, and against it."""
    sure = [part for part in leading(explanation) if not part.sign_unsure]
    speaking = [part for part in sure if (part.contribution or 0.0) >= MATTERS]
    return speaking[:LEADING], [part for part in sure if (part.contribution or 0.0) <= -MATTERS][:1]


def spotlit(explanation: Findings) -> ConceptExplanation | None:
    """The concept whose region is shown: the first that the sentence names, or else the first of :func:`leading`."""
    speaking, opposing = _decisive(explanation)
    return next(iter([*speaking, *opposing, *leading(explanation)]), None)


def sentence(explanation: Findings) -> str:
    """The class, and the present and trusted concepts of sure sign that speak most for it and against it."""
    head = f"{explanation.target_name}, {percent(explanation.probability)}"
    if all(part.contribution is None for part in explanation):
        words = [part.concept.word for part in leading(explanation)[:LEADING]]
        return f"{head}: contributions cannot be computed for this classifier. Most similar: {_and(words) or 'no concept'}."
    speaking, opposing = ([part.concept.word for part in parts] for parts in _decisive(explanation))
    if not speaking and not opposing:
        return f"{head}: no present and trusted concept carries it (by {100 * MATTERS:.0f} % or more)."
    found = [f"{_and(speaking)} {'speak' if len(speaking) > 1 else 'speaks'} for it most"] if speaking else []
    found += [f"{opposing[0]} speaks against it"] if opposing else []
    return f"{head}: {'; '.join(found)}."


def _and(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def percent(share: float) -> str:
    """Format a probability in percent, with one decimal.

    >>> percent(0.1234), percent(0.00001), percent(1.0)
    ('12.3 %', '< 0.1 %', '100.0 %')
    """
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"


def signed(value: float | None) -> str:
    """Format a contribution with its sign; ``None`` as a dash.

    >>> signed(0.25), signed(-1.5), signed(None)
    ('+0.250', '-1.500', '-')
    """
    return "-" if value is None else f"{value:+.3f}"


def _line(part: ConceptExplanation, room: int, bar: int, largest: float) -> str:
    value = part.contribution or 0.0
    drawn = (AGAINST if value < 0 else FOR) * round(bar * abs(value) / largest)
    mark = "  absent" if not part.present else "  doubtful" if part.distrust else ""
    return f"  {_cut(part.name, room):{room}} {signed(part.contribution):>7} {drawn:{bar}} p {part.score:.2g}{mark}".rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"
