"""ONNX files in: read within budgets, judged by a runtime, said in the closed op table."""
