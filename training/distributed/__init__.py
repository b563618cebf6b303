"""One training run on many processes: who they are, how a batch is cut, how weights are sharded, saved and estimated.

Nothing here knows a stage, a loss or a data set.
"""
