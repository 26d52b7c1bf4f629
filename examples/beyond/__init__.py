"""Beyond the paper, measured: docs/beyond.md."""
