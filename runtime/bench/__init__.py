"""The benchmark: a story of many shots, timed chunk by chunk. Nothing heavy is imported here; see the modules.

`measure` plays the story and records samples; `samples`, `playout` and `noise` turn them into figures and know no
model; `report` is the file format; `text` and `plot` show it; `compare` holds two of them side by side.
"""
