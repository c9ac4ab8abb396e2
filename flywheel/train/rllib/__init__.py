"""The only place that imports RLlib and torch: the env runner, the learner's rounds, the export to ONNX."""
