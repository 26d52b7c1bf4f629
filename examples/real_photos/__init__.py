"""The whole job on real photographs, offline."""
