"""The version of LensJAX that is installed, which git's tags give when it is built."""

from importlib.metadata import PackageNotFoundError, version


def _installed() -> str:
    try:
        return version("lensjax")
    except PackageNotFoundError:  # a copy of the source that nobody installed
        return "0+unknown"


__version__ = _installed()
