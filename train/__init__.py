"""Training: one loop, one file per base, one script per job."""
