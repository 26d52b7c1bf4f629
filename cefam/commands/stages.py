"""``cefam stages``: the modules of a classifier that can be stages."""


def stages(classifier: list[str]) -> None:
    """List the modules of classifiers whose output is a map, with channels and resolution; * marks the default stages.

    Args:
        classifier: functions of yours, "my_net.birds", or names, as for `cefam study`.
    """
    from cefam.towers.named import candidates_of

    for name in classifier:
        found, chosen = candidates_of(name)
        for each in found:
            size = f"{each.rows} x {each.columns}" if each.rows else "tokens"
            print(f"{'*' if each.name in chosen else ' '} {each.name:40} {each.channels:5} channels  {size}")
