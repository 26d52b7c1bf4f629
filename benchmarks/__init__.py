"""Measurements of speed and memory: one command each, a table and JSON. No test is timed."""
