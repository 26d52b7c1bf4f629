"""Files: atomic writing, reading, resumable passes, and keys of cached results."""
