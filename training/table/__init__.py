"""The paper's table in miniature: rival methods and ablations on the story world, at equal size and budget."""
