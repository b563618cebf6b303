"""The transformer cut at its self-attentions, and engines of the runtime that are made of the pieces."""
