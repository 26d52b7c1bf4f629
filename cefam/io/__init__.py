"""Files: written whole or not at all, reading, resumable passes, and the key of a cached result."""
