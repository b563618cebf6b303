"""The runtime room: model, dual cache, shot loop, sessions, plugins, sinks and the command line."""
