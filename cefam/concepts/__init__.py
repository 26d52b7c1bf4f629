"""Concept sets with embeddings, concept files, and categories."""
