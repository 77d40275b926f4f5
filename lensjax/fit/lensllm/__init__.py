"""The LensLLM law, fitted to all models at once with their kernels."""
