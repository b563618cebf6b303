"""What the paper and its code define: losses, roll-out, draws, samplers. No optimiser, no data."""
