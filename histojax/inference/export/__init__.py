"""Export trained models: StableHLO, ONNX, safetensors, Hugging Face."""
