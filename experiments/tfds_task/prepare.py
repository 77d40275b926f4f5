"""Prepare the data set of builder.py in array_record format, of which single examples can be read.

    python experiments/tfds_task/prepare.py [--folder DIR]

See README.md beside this file.
"""

from pathlib import Path

import tensorflow_datasets as tfds
import tyro
from builder import CmuPronunciations

HERE = Path(__file__).parent


def prepare(folder: Path = HERE / "build") -> None:
    """Prepare the data set, unless it is prepared already.

    Args:
        folder: Where TFDS keeps it; task.yaml names the default.
    """
    tfds.disable_progress_bar()
    builder = CmuPronunciations(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    sizes = ", ".join(f"{name} {split.num_examples:,}" for name, split in builder.info.splits.items())
    print(f"{builder.data_path}: {sizes}")


if __name__ == "__main__":
    tyro.cli(prepare)
