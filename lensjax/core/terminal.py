"""What commands say: text that cannot steer a terminal, to streams that may not know all of its characters."""

import codecs
import sys

from lensjax.core.text import plain

_PLAIN = "lensjax-plain"
_ASCII = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "×": "x", "→": "->", "\u00a0": " "}
)


def say(text: object = "", *, error: bool = False, end: str = "\n") -> None:
    """Print text on standard output, or on standard error, at once.

    Control characters and those that change the direction of text are replaced.
    """
    print(plain(str(text)), file=sys.stderr if error else sys.stdout, end=end, flush=True)


def prepare_streams() -> None:
    """Let standard output and error take every text: characters that their encoding lacks are written as others."""
    codecs.register_error(_PLAIN, _encodable)
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)  # which streams of other programs lack
        if reconfigure is not None:
            reconfigure(errors=_PLAIN)


def _encodable(error: UnicodeError) -> tuple[str, int]:
    """What stands for characters that an encoding lacks."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end].translate(_ASCII)
    return "".join(c if c.isascii() else "?" for c in lacking), error.end
