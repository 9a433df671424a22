"""From folders, archives and tables to a data set: layouts, labels, near duplicates, splits."""
