"""A model against the goals, or the stages of one run side by side."""
