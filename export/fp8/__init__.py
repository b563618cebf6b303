"""Products in eight-bit floating point: what they cost a film, and graphs that have them."""
