"""The matchers as ONNX files."""
