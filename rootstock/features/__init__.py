"""Features of a frozen backbone: computed once, cached as Parquet, read as a stream."""
