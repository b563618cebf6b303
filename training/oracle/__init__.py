"""Readers that tell what a frame shows: the judges of the embedded model."""
