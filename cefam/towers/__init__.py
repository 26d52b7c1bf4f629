"""The frozen networks: the classifier with its stages, and the vision-language model."""
