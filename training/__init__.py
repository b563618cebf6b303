"""The training room: story world, losses, stages, recipes and metrics."""
