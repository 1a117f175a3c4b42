"""Serving: ONNX export, the Triton Python-backend model, the model repository, the embedded server and its client."""
