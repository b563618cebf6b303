"""Graphs without weights, which come with the package."""
