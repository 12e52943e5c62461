"""What adapters cost and what they reach, measured: one file per measurement."""
