"""Files that commands write."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lensjax.core.files import check_writable, write_files
from lensjax.core.terminal import say


def output_writer(*outputs: Path | None, reads: Sequence[str | Path] = ()) -> Callable[..., None]:
    """Check before long work that files can be written after it.

        write = output_writer(json, csv, reads=[curves])
        ranking = …
        write(lambda: ranking_json(ranking), lambda: ranking_csv(ranking))

    Args:
      outputs: Each a file, or None where the user did not ask for it.
      reads: Files that must not be overwritten.

    Returns:
      A function that takes a maker of the content of each output, calls those that are needed, writes the files, all of
      them or none, and says so.

    Raises:
      InputError: a file plainly cannot be written.
    """
    check_writable([path for path in outputs if path is not None], reads)

    def write(*makers: Callable[[], str | bytes]) -> None:
        write_all({path: make() for path, make in zip(outputs, makers, strict=True) if path is not None})

    return write


def write_all(contents: Mapping[Path, str | bytes]) -> None:
    """Write files, all of them or none, and say so.

    Raises:
      InputError: one of them cannot be written.
    """
    write_files(contents)
    for path in contents:
        say(f"Wrote {path}")
