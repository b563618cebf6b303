"""The model's side of the bridge: a process of its own that makes chunks on order and knows no client."""
