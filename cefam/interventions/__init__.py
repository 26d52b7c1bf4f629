"""Ground truth for contributions: one concept of a drawn scene is changed, everything else stays, and the class's log-odds move.

``edits`` (scenes, no torch), ``effects`` (what a classifier makes of them), ``rules`` (what explanations say), ``agreement`` (how well
the two agree), ``checks`` (FunnyBirds' checks), ``benchmark`` (all of it).
"""
