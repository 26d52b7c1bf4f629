"""Concepts: sets with embeddings, the files people write, categories."""
