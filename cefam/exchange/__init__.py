"""Import and export artefacts of other programs, without executing code in them."""
