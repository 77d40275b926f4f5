"""Fits of scaling laws: model by model, and jointly over all models."""
