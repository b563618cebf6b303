"""The runtime room: model, caches, sessions, plugins, engines, sinks and the command line.

It imports nothing heavy on its own; other rooms plug into it and are never imported from here.
"""

__version__ = "0.1.0"
