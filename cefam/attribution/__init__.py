"""The method on (image, concept) pairs: weights and regions, choice of a stage, contribution; ``explainer`` composes them."""
