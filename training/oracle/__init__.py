"""The oracle: reads pixels of the story world back into facts. Used to measure models, never to train them."""
