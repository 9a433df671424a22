"""One file a DVC stage: its parameters in, its files out, and two doors to start it."""
