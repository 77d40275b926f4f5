"""Numbers and untrusted names as the short texts a report prints."""

import html
import json
import math
import re
import unicodedata

DASH = "–"
_NBSP = "\u00a0"
_BIDI = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff" + "".join(_BIDI) + "]")
_TITLES = {
    name.lower(): name
    for name in (
        "ZeroShot",
        "ModelSize",
        "SubTuning",
        "NLPmetrics",
        "VanillaLaw",
        "RectifiedLaw",
        "AtS",
        "LensLLM",
        "LensJAX",
    )
}


def clean(name: object, limit: int | None = None) -> str:
    """`name` on one line without control, surrogate or text-direction characters, cut to `limit` characters.

    The result is text, not HTML: a template or `plotly_text` must escape it.
    """
    flat = "".join(
        "�" if c in _BIDI or unicodedata.category(c) in {"Cc", "Cs", "Co", "Cn", "Zl", "Zp"} else c for c in str(name)
    )
    return flat if limit is None or len(flat) <= limit else flat[: limit - 1] + "…"


def plain(text: str) -> str:
    """`text` without the characters that `clean` replaces, but with its lines, and as long as it was."""
    return "\n".join(map(clean, text.split("\n"))) if not text.isascii() or not text.isprintable() else text


def json_text(content: object) -> str:
    """JSON for people and programs, in which what `clean` replaces is written as its number.

    Raises:
      ValueError: it holds NaN or infinity, which JSON lacks.
    """
    return escaped_json(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False)) + "\n"


def escaped_json(text: str) -> str:
    """JSON text in which what `clean` replaces is written as its number."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def plotly_text(name: object, limit: int = 60) -> str:
    """`name` for Plotly, which reads tags in every text it draws and expands `%{…}` in templates."""
    return html.escape(clean(name, limit), quote=False).replace("{", "&#123;")


def method_title(name: str) -> str:
    """A method's registered name in the spelling of the literature, where it has one."""
    return _TITLES.get(name.replace("_", "").replace("-", "").lower(), clean(name, 40))


def count(value: float) -> str:
    """A number of examples or parameters in at most four characters or so: 200, 1.6k, 124M, 6.7B."""
    if not math.isfinite(value):
        return DASH
    for unit, suffix in ((1.0, ""), (1e3, "k"), (1e6, "M"), (1e9, "B"), (1e12, "T")):
        scaled = value / unit
        text = f"{scaled:.1f}" if scaled < 99.95 else f"{scaled:.0f}"
        if float(text) < 1000 or suffix == "T":
            return text.removesuffix(".0") + suffix
    raise AssertionError("unreachable: the last unit always returns")


def number(value: float) -> str:
    """A loss, with three decimals or three significant digits when small or huge."""
    if not math.isfinite(value):
        return DASH
    return f"{value:.3f}" if value == 0 or 0.1 <= abs(value) < 1000 else f"{value:.3g}".replace("-", "−")


def interval(lower: float, upper: float) -> str:
    """Both ends of an interval, to two digits of its width; an en dash alone where an end is missing."""
    if not (math.isfinite(lower) and math.isfinite(upper)):
        return DASH
    width, largest = abs(upper - lower), max(abs(lower), abs(upper))
    if not (0 < width < largest < 1000):
        return f"{number(lower)}{_NBSP}–{_NBSP}{number(upper)}"
    places = min(max(1 - math.floor(math.log10(width)), 2), 6)
    low = f"{lower:.1g}" if 0 < lower < 0.5 * 10.0**-places else f"{lower:.{places}f}"  # none above 0 is called 0
    return f"{low}{_NBSP}–{_NBSP}{upper:.{places}f}"


def percent(probability: float) -> str:
    """A probability in whole percent; small ones are not called impossible, nor large ones certain."""
    if not math.isfinite(probability):
        return DASH
    if probability < 0.01:
        return f"<{_NBSP}1{_NBSP}%"
    if 0.99 < probability < 1:
        return f">{_NBSP}99{_NBSP}%"
    return f"{100 * probability:.0f}{_NBSP}%"


def probability(value: float) -> str:
    """A probability in a sentence, as in "with probability 0.83"; never certain or impossible."""
    return "over 0.99" if value > 0.99 else "under 0.01" if value < 0.01 else f"{value:.2f}"


def regret(value: float) -> str:
    """An expected regret, never rounded to nothing."""
    if 0 < value < 0.0005:
        return f"<{_NBSP}0.001"
    return f"{value:.3f}" if value < 1000 else number(value)


def significant(value: float, digits: int = 4) -> str:
    """A number with a few significant digits, such as a law parameter."""
    return f"{value + 0.0:.{digits}g}".replace("-", "−") if math.isfinite(value) else DASH


def share(part: float) -> str:
    """A part of a whole in percent, with two digits where there would be fewer."""
    return f"{100 * part:,.0f} %" if part >= 0.1 else f"{100 * part:.2g} %"


def duration(seconds: float) -> str:
    """Wall time in its two largest units, as in 2 h 24 min; nothing where none passed."""
    if seconds < 60:
        return f"{seconds:.{seconds < 9.95:d}f} s" if seconds else ""
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"


def flops(operations: float) -> str:
    """Floating-point operations with a prefix of SI; nothing where none were counted."""
    for unit, prefix in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if operations >= unit:
            return f"{operations / unit:.3g} {prefix}FLOP"
    return f"{operations:.0f} FLOP" if operations else ""
