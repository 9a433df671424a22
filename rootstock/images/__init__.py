"""Decodes image files: detects the format, checks integrity, maps values to eight bits, and loads batches."""
