"""The joint fit stacked with simpler predictions."""
