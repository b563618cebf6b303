"""The procedural story world: stories and captions from seeds, and the pictures that go with them."""
