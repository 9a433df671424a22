"""The six stages of dvc.yaml, one file per stage; `dvc repro` and the Prefect flows both start them."""

from rootstock.system import memory

memory.prefer_jemalloc()
