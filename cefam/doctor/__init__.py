"""Which concepts to trust."""
