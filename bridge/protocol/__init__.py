"""The wire protocol, version 1: what is said, how it is packed, and how much of it is allowed. No sockets, no state."""
