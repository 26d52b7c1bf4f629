"""Measures what moves CE-FAM's numbers in Brodenette, and draws the pictures of ``docs/research/brodenette.md``."""
