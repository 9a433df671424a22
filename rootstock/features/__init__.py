"""Features of a frozen backbone: computed once, cached as Parquet, streamed to training."""
