"""Checks of the reliability of concepts."""
