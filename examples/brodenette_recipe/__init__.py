"""Trains the two towers that come with Brodenette."""
