"""CE-FAM on (image, concept) pairs: channel weights and regions, stage selection, contribution; composed by ``explainer``."""
