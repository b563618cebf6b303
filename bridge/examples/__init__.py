"""Small games that show how the bridge is used; each runs by itself."""
