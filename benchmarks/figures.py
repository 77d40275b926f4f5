"""Figures of what a benchmark's cost grows with."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def panels(
    columns: int, size: tuple[float, float], file: Path, label: str = "seconds", *, shared: bool = True
) -> Iterator[list[Any]]:
    """Axes beside each other, of one scale if shared, which become an SVG file that is the same of the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": file.stem, "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(1, columns, figsize=size, sharey=shared, layout="constrained", squeeze=False)
        yield list(axes[0])
        for axis in axes[0]:
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0, 0].set_ylabel(label)
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
