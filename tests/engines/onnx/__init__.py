"""Tests of the ONNX Runtime engine."""
