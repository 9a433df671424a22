"""The work itself, in torch, pyarrow and pandas; it knows nothing of stages, Prefect or DVC."""
