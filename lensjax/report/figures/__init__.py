"""Plotly figures of rankings, curves, and studies."""
