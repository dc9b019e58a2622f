"""Seconds of a layer's parts on the device, read when they are asked for: reading one waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from lstm_cli.engines.cuda.device import Device, Mark


class Spans(Mapping[str, float]):
    """Seconds by part. A part that is begun again adds to itself.

    Parameters
    ----------
    device
        Whose clock.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._parts: list[tuple[str, Mark]] = []
        self._end: Mark | None = None
        self._found: dict[str, float] | None = None

    def begin(self, part: str) -> None:
        """What is started from now on belongs to a part."""
        self._parts.append((part, self._device.mark()))

    def end(self) -> None:
        """No more parts."""
        self._end = self._device.mark()

    def __getitem__(self, part: str) -> float:
        if self._found is None:
            self._found = self._read()
        return self._found[part]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._parts))

    def __len__(self) -> int:
        return len(dict(self._parts))

    def _read(self) -> dict[str, float]:
        ends = [mark for _, mark in self._parts[1:]] + [self._end or self._device.mark()]
        found: dict[str, float] = {}
        for (part, begun), end in zip(self._parts, ends, strict=True):
            found[part] = found.get(part, 0.0) + end.seconds_since(begun)
        return found


class Stretch(Mapping[str, float]):
    """Seconds of one part, between two marks."""

    def __init__(self, part: str, begun: Mark, end: Mark) -> None:
        self._part, self._begun, self._end = part, begun, end
        self._found: float | None = None

    def __getitem__(self, part: str) -> float:
        if part != self._part:
            raise KeyError(part)
        if self._found is None:
            self._found = self._end.seconds_since(self._begun)
        return self._found

    def __iter__(self) -> Iterator[str]:
        return iter([self._part])

    def __len__(self) -> int:
        return 1
