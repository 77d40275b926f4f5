"""The families of models: one file each, named after Hugging Face's model_type."""
