"""The one exception a user is meant to read."""


class InputError(ValueError):
    """Something the user gave cannot be used.

    The message is one sentence naming the file, field or row at fault and how to mend it; the command
    line prints it and exits with status 2.
    """


def shorten(text: object, limit: int = 60) -> str:
    """`text` on one line, printable and at most `limit` characters, for quoting user input in a message."""
    flat = "".join(c if c.isprintable() else "�" for c in str(text))
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def one_line(error: Exception, limit: int = 120) -> str:
    """What an error that others raised says, on one line of at most `limit` characters, without a full stop."""
    return shorten(" ".join(str(error).split()), limit).rstrip(".")


def listing(names: list[str] | tuple[str, ...], limit: int = 5) -> str:
    """Up to `limit` of `names`, comma-separated, and how many more there are."""
    shown = ", ".join(shorten(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
