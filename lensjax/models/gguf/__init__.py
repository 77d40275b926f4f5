"""GGUF files of llama.cpp: configuration, tokenizer and weights, dequantised as they are read."""
