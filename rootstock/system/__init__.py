"""What the machine and its networks provide: files, stores, threads, memory, and errors that a person can read."""
