"""The Prefect UI on this machine: server, workers, inbox watcher, page of reports, and the forms of the flows."""
