"""Beyond the paper, measured: docs/research/beyond.md."""
