"""The transformer, its caches, schedule and context choice: tensors only, no sessions and no captions as text."""
