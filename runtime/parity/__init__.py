"""Checks of the mathematics against recorded reference vectors."""
