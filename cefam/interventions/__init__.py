"""Ground truth for contributions: change of a class's log-odds when a single concept of a drawn scene is edited.

``edits`` (edited scenes, no torch), ``effects`` (effects of edits on a classifier), ``rules`` (explanation rules),
``agreement`` (of rules with effects), ``checks`` (FunnyBirds' checks), ``benchmark`` (the complete benchmark).
"""
