"""Files that LensJAX writes to read again: sealed with a checksum, read into typed models, set aside if damaged.

A file that does not hold what was written is `Damaged`. A command that can make it again moves it to the folder
`quarantine`, with the reason, and goes on; any other says in a sentence what to do.
"""

import errno
import hashlib
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lensjax.core.errors import InputError, shorten
from lensjax.core.files import make_folder, write_files
from lensjax.core.reading import MOST, NotRegular, largest, opened
from lensjax.core.text import escaped_json

CHECKSUM = "checksum"
QUARANTINE = "quarantine"  # folder of files that were set aside
REASONS = "reasons.jsonl"  # in it: when and why
_LONGEST = 200  # bytes of the name of what was set aside
_SEAL = len(b',"checksum":"0123456789abcdef"}')

Fields = TypeVar("Fields", bound=BaseModel)


class Damaged(InputError):
    """A file of LensJAX does not hold what was written there.

    Attributes:
      path: The file.
      why: What is wrong with it, without a full stop.
    """

    def __init__(self, path: Path, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(f"{shorten(path, 400)} is damaged ({why}); remove it, and it is made again.")


def digest(content: bytes) -> str:
    """A hash of the content of a file."""
    return hashlib.sha256(content).hexdigest()[:16]


def sealed(content: Mapping[str, Any]) -> str:
    """The text of a JSON file, with a checksum of its content."""
    return escaped_json(json.dumps(with_checksum(content), indent=2, ensure_ascii=False)) + "\n"


def with_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file, and a checksum of it."""
    plain = dict(content)
    return plain | {CHECKSUM: _of_content(plain)}


def without_checksum(fields: Mapping[str, Any], path: Path, *, required: bool = True) -> dict[str, Any]:
    """The content of which `with_checksum` made these fields of a file.

    Raises:
      Damaged: the checksum does not fit, or is missing where it is required.
    """
    plain = {name: value for name, value in fields.items() if name != CHECKSUM}
    checksum = fields.get(CHECKSUM)
    if checksum is None and required:
        raise Damaged(path, "it has no checksum")
    if checksum is not None and checksum != _of_content(plain):
        raise Damaged(path, "its checksum does not fit its content")
    return plain


def sealed_line(content: str | bytes) -> bytes:
    """A JSON object of one line with a checksum of its bytes at its end, which is quicker to check."""
    plain = content.encode() if isinstance(content, str) else content
    return plain[:-1] + _seal(plain)


def unsealed_line(line: bytes) -> bytes | None:
    """The line of which `sealed_line` made this one; None where the checksum is missing or does not fit."""
    plain = line[:-_SEAL] + b"}"
    return plain if line[-_SEAL:] == _seal(plain) else None


def _seal(plain: bytes) -> bytes:
    return b',"checksum":"' + digest(plain).encode() + b'"}'


def read_ours(path: Path, size: int | None = None) -> bytes | None:
    """The content of a file of ours; None where there is none.

    Args:
      path: The file.
      size: Its size in bytes, where that is known.

    Raises:
      Damaged: it is a folder, a device, a pipe or a link in a circle, or of another size.
      InputError: it cannot be read, or its size is not known and larger than that of a file which is read whole.
    """
    try:
        with opened(path) as file:
            found = os.fstat(file.fileno()).st_size
            if size is not None and found != size:
                raise Damaged(path, f"{path.name} has {found:,} bytes, and {size:,} were written")
            if size is None and found > largest():
                raise InputError(
                    f"{shorten(path, 400)} is larger than {largest() // 10**6:,} MB; remove it, and it is made again, "
                    f"or set {MOST} to a larger number."
                )
            return file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except NotRegular as error:
        raise Damaged(path, f"it is {error}") from error
    except OSError as error:
        if path.is_symlink():
            raise Damaged(path, "it is a link that leads nowhere") from error
        if error.errno == errno.ELOOP:  # as one of its folders is
            return None
        raise InputError(f"Cannot read {shorten(path, 400)}: {error.strerror}; mend its permissions.") from error


def read_sealed(path: Path, kind: type[Fields], *, required: bool = True) -> Fields | None:
    """The content of a file that `sealed` made the text of; None where there is none.

    Args:
      path: The file.
      kind: The model of its fields.
      required: Whether it must have a checksum, as all files but those of earlier versions do.

    Raises:
      Damaged: it does not hold what was written.
      InputError: it cannot be read.
    """
    content = read_ours(path)
    return None if content is None else unsealed(content, kind, path, required=required)


def unsealed(content: bytes, kind: type[Fields], path: Path, *, required: bool = True) -> Fields:
    """The fields of a sealed file with this content; see `read_sealed`."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Damaged(path, "it is empty" if not content.strip() else "it is not JSON") from error
    if not isinstance(fields, dict):
        raise Damaged(path, "it is not a JSON object")
    plain = without_checksum(fields, path, required=required)
    try:
        return kind.model_validate(plain)
    except (ValidationError, RecursionError) as error:
        raise Damaged(path, _first(error)) from error


def set_aside(path: Path, why: str, root: Path) -> str:
    """Move a file or folder into the quarantine of a folder above it, and note why; returns a sentence that says so.

    Raises:
      InputError: it cannot be moved.
    """
    place = root / QUARANTINE
    make_folder(place)
    name = str(path.relative_to(root)).replace(os.sep, "_")
    name = os.fsdecode(os.fsencode(name)[-_LONGEST:])  # files' names have an end
    now, taken = datetime.now(UTC).isoformat(timespec="seconds"), {one.name for one in place.iterdir()}
    new = next(one for n in range(len(taken) + 1) if (one := f"{name}.{n}" if n else name) not in taken)
    try:
        os.replace(path, place / new)
    except OSError as error:
        raise InputError(
            f"{shorten(path, 400)} is damaged ({why}) and cannot be moved to {QUARANTINE} ({error.strerror}); make "
            "room or mend the folder's permissions, and run the same command again."
        ) from error
    note = {"time": now, "was": str(path.relative_to(root)), "is": new, "reason": why}
    try:
        earlier = read_ours(place / REASONS) or b""
    except Damaged:  # a pipe, or a link in a circle
        earlier = b""
    line = escaped_json(json.dumps(note, ensure_ascii=False)).encode() + b"\n"
    write_files({place / REASONS: earlier + line}, follow=False)
    return f"{shorten(path.relative_to(root), 400)} was set aside in {QUARANTINE} ({why}); it is made again."


def _of_content(fields: Mapping[str, Any]) -> str:
    return digest(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode())


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    why = first["msg"].removeprefix("Value error, ")
    return shorten(f"{field}: {why[:1].lower()}{why[1:]}" if field else why, 200)
