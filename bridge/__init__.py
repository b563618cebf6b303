"""The bridge: game engines send events and receive frames, over ZeroMQ and MessagePack."""
