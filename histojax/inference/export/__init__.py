"""A trained model in other formats: StableHLO, ONNX, safetensors, Hugging Face."""
