"""The one exception that users are meant to read, and how its messages quote things."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something that the user gave cannot be used.

    The message is one sentence: what is wrong, in which file, field or row, and how to mend it. The command line prints
    it and exits with status 2.
    """


class NotFinite(InputError):
    """What was computed is NaN or infinite."""


class PeerLost(InputError):
    """Another process that computed with this one is gone, so that neither can go on; the same command resumes."""


def shorten(text: object, limit: int = 60) -> str:
    """`text` on one line, printable and at most `limit` characters, for quoting user input in a message."""
    flat = _as_text(text)
    if not flat.isprintable():
        flat = "".join(c if c.isprintable() else "�" for c in flat)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _as_text(value: object) -> str:
    try:
        return str(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "a number of thousands of digits"


def as_sentence(error: Exception, limit: int = 1200) -> str:
    """The message of an InputError on one line, printable; of a longer one, its beginning and its end."""
    text = shorten(" ".join(str(error).split()), 10**7)
    return text if len(text) <= limit else f"{text[: limit // 2]} … {text[-limit // 2 :]}"


def one_line(error: Exception, limit: int = 120) -> str:
    """The message of another library's error, on one line of at most `limit` characters, without a full stop."""
    return shorten(" ".join(str(error).split()), limit).rstrip(".")


def listing(names: list[str] | tuple[str, ...], limit: int = 5) -> str:
    """Up to `limit` of `names`, comma-separated, and how many more there are."""
    shown = ", ".join(shorten(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


def meant(name: str, names: Iterable[str]) -> str | None:
    """The one of some names that a misspelt one may stand for; None where none is near."""
    near = difflib.get_close_matches(name, list(names), n=1)
    return near[0] if near else None
