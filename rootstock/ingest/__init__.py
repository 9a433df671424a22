"""Turn folders, archives and tables into a dataset: layouts, labels, near duplicates, splits."""
