"""The model that won, as one folder: loaded anywhere, asked about images; and who was champion when."""
