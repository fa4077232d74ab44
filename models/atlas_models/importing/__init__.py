"""Models from elsewhere: `nnunet`, `monai` and `onnx`, each with the libraries of its own."""
