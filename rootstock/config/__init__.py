"""params.yaml as a typed model, and which backbones it may name."""
