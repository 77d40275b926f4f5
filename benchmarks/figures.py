"""Figures of what a benchmark's cost grows with."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def seconds_against(columns: int, size: tuple[float, float], file: Path) -> Iterator[list[Any]]:
    """Axes beside each other, of seconds, which become an SVG file that is the same of the same numbers."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    with plt.rc_context({"svg.hashsalt": file.stem, "svg.fonttype": "none", "font.size": 9}):
        figure, axes = plt.subplots(1, columns, figsize=size, sharey=True, layout="constrained", squeeze=False)
        yield list(axes[0])
        for axis in axes[0]:
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        axes[0, 0].set_ylabel("seconds")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
