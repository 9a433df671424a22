"""The data set on disk: shards of images, manifest, ledger, summary."""
