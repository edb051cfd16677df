"""Numbers as a reader sees them: every figure of a page, a table or a Markdown file is formatted here."""

from __future__ import annotations

import math
from datetime import UTC, datetime

NOTHING = "–"
"""What stands where a number is undefined: never a zero."""

_MINUS = "\u2212"


def undefined(value: float | None) -> bool:
    """Whether there is no number to show (None, NaN or an infinity)."""
    return value is None or not math.isfinite(value)


def percent(value: float | None, digits: int = 1) -> str:
    """A rate in [0, 1] as a percentage.

    >>> percent(0.8234), percent(None)
    ('82.3%', '–')
    """
    return NOTHING if value is None or undefined(value) else f"{100 * value:.{digits}f}%".replace("-", _MINUS)


def percent_interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval of a rate; empty where there is none.

    >>> percent_interval(0.791, 0.8521)
    '79.1–85.2%'
    """
    if low is None or high is None or undefined(low) or undefined(high):
        return ""
    return f"{100 * low:.1f}–{100 * high:.1f}%"


def spread(value: float | None) -> str:
    """A standard deviation of rates, in percentage points; empty where there is none.

    >>> spread(0.0123)
    '±1.2'
    """
    return "" if value is None or undefined(value) else f"±{100 * value:.1f}"


def points(value: float | None) -> str:
    """A signed difference of two rates in percentage points.

    >>> points(0.034), points(-0.0123), points(0.0001)
    ('+3.4', '−1.2', '0.0')
    """
    return NOTHING if value is None or undefined(value) else _signed(100 * value, 1)


def points_interval(low: float | None, high: float | None) -> str:
    """The two ends of an interval of a difference, in percentage points; empty where there is none.

    >>> points_interval(-0.012, 0.034)
    '[−1.2, +3.4]'
    """
    if low is None or high is None or undefined(low) or undefined(high):
        return ""
    return f"[{points(low)}, {points(high)}]"


def signed(value: float | None) -> str:
    """A signed difference of two quantities that are not rates.

    >>> signed(-0.01234)
    '−0.0123'
    """
    return NOTHING if value is None or undefined(value) else _signed(value, 4)


def decimal(value: float | None, digits: int = 3) -> str:
    """A plain number with a fixed number of digits.

    >>> decimal(0.34567)
    '0.346'
    """
    return NOTHING if value is None or undefined(value) else f"{value:.{digits}f}".replace("-", _MINUS)


def count(value: float | None) -> str:
    """A whole number with thousands set apart.

    >>> count(123456)
    '123,456'
    """
    return NOTHING if value is None or undefined(value) else f"{round(value):,}".replace("-", _MINUS)


def short_count(value: float | None) -> str:
    """A large count in three figures.

    >>> short_count(25_557_032), short_count(21_840), short_count(740)
    ('25.6 M', '21.8 k', '740')
    """
    if value is None or undefined(value):
        return NOTHING
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}" if value < 999.5 * limit else f"{value / limit:,.0f} {unit}"
    return count(value)


def about(value: int) -> str:
    """A forecast, rounded up to two figures: more would be false precision.

    >>> about(7), about(1234)
    ('7', '1,300')
    """
    step = 10 ** max(len(str(value)) - 2, 0)
    return count(-(-value // step) * step)


def ratio(value: float | None) -> str:
    """How many times larger one thing is than another.

    >>> ratio(12.34), ratio(9.96), ratio(1.0)
    ('12', '10', '1.0')
    """
    if value is None or undefined(value):
        return NOTHING
    return f"{value:,.0f}" if value >= 9.95 else f"{value:.1f}"


def duration(seconds: float | None) -> str:
    """A span of time, in the symbols of the SI, which need no translation.

    >>> duration(0.42), duration(42.4), duration(65), duration(7260)
    ('0.42 s', '42.4 s', '1 min 05 s', '2 h 01 min')
    """
    if seconds is None or undefined(seconds):
        return NOTHING
    if seconds < 10:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def milliseconds(value: float | None) -> str:
    """A latency in three figures.

    >>> milliseconds(0.02334), milliseconds(1234.5)
    ('0.0233 ms', '1,234 ms')
    """
    if value is None or undefined(value):
        return NOTHING
    return f"{value:,.0f} ms" if value >= 999.5 else f"{value:.3g} ms"


def size(value: float | None) -> str:
    """Bytes as a disk counts them, in three figures.

    >>> size(32_680), size(98_000_000)
    ('32.7 kB', '98 MB')
    """
    if value is None or undefined(value):
        return NOTHING
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}"
    return f"{value:.0f} B"


def energy(joules: float | None) -> str:
    """Energy a sample.

    >>> energy(0.0000123), energy(2.5)
    ('0.0123 mJ', '2.5 J')
    """
    if joules is None or undefined(joules):
        return NOTHING
    return f"{joules:.3g} J" if joules >= 1 else f"{1000 * joules:.3g} mJ"


def moment(text: object) -> str:
    """A date and time as the ISO writes it, without the parts nobody reads; other text as it is.

    >>> moment("2025-11-22T09:30:12.5+00:00"), moment("today")
    ('2025-11-22 09:30 UTC', 'today')
    """
    try:
        when = datetime.fromisoformat(str(text))
    except ValueError:
        return str(text)
    if when.tzinfo is None:
        return f"{when:%Y-%m-%d %H:%M}"
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def p_value(value: float | None) -> str:
    """The p value of a test.

    >>> p_value(0.01234), p_value(1e-9)
    ('0.012', '<0.001')
    """
    if value is None or undefined(value):
        return NOTHING
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float, digits: int) -> str:
    text = f"{value:+.{digits}f}"
    if float(text) == 0:
        return text[1:]
    return text.replace("-", _MINUS)
