"""The Prefect UI on this machine: server, workers, inbox watcher, report server, and the forms of the flows."""
