"""Turn folders, archives and tables into a data set: layouts, labels, near duplicates, splits."""
