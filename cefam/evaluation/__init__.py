"""Measuring regions: the evaluator, presence scores, and the LightningModule."""
