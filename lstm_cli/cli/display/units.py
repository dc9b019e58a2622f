"""Numbers as text: seconds, bytes, significant digits, shapes."""

from __future__ import annotations


def seconds(value: float) -> str:
    """Seconds as text: ``36 µs``, ``1.9 ms``, ``2.1 s``."""
    if value < 1e-3:
        return f"{value * 1e6:.0f} µs"
    if value < 1:
        return f"{value * 1e3:.1f} ms" if value < 0.1 else f"{value * 1e3:.0f} ms"
    return f"{value:.1f} s" if value < 100 else f"{value:,.0f} s"


def size(value: float) -> str:
    """Bytes as text: ``312 B``, ``4.7 kB``, ``1.3 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} TB"


def significant(value: float) -> str:
    """A number with three significant digits: ``148``, ``1.26``, ``0.083``."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def shape(value: tuple[int | str, ...]) -> str:
    """A shape as text: ``(100, 12)``, ``(N, 100)``, ``(100,)``."""
    return f"({value[0]},)" if len(value) == 1 else f"({', '.join(map(str, value))})"
