"""Training in many processes: sharding, accumulation, checkpoints that any number of processes can read."""
