"""Fine-tuning curves: the table, its files, scaling laws, and public and simulated tables."""

from lensjax.core.lazy import lazy

__getattr__, __dir__ = lazy(
    __name__,
    {
        "CurveTable": "table",
        "curve_table": "table",
        "read_curves": "csv_files",
        "read_source": "sources",
        "simulated_task": "simulated",
        "LAWS": "laws",
        "Unit": "units",
    },
)
