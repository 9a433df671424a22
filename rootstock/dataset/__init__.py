"""The dataset on disk: tar shards of images, manifest, ledger, rejected files and summary."""
