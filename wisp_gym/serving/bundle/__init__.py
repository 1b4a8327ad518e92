"""A policy as one sealed ONNX file: the file, its schema, and what is checked before it runs."""
