"""Trackers of the measurements of a run: TensorBoard and Weights & Biases, where they are installed."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from lensjax.core.errors import InputError


class Tracker(Protocol):
    """Receives the measurements of one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the values of a step."""

    def close(self) -> None:
        """Write everything that is still held."""


class TensorBoard:
    """Event files in a folder, through tensorboardX."""

    def __init__(self, name: str, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project "lensjax", through wandb, which WANDB_MODE and its other variables direct."""

    def __init__(self, name: str, folder: Path) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(project="lensjax", name=name, dir=str(folder), reinit="create_new")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


TRACKERS: Mapping[str, tuple[str, Callable[[str, Path], Tracker]]] = {
    "tensorboard": ("tensorboardX", TensorBoard),
    "wandb": ("wandb", WeightsAndBiases),
}


def check_trackers(names: Sequence[str]) -> None:
    """Check before long work that trackers can be used.

    Raises:
      InputError: the package of one is not installed.
    """
    import importlib.util

    for name in names:
        package = TRACKERS[name][0]
        if importlib.util.find_spec(package) is None:
            raise InputError(f"--track {name} needs the package {package}; install it with pip install {package}.")
