"""A model written for other runtimes: ONNX, OpenVINO, torch.export and TorchScript, checked against the model."""
