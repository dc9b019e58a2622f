"""Whether several files can be one dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lstm_cli.data.types import DataOptions, Layout
from lstm_cli.errors import DataError


def need_alike(layouts: Sequence[Layout], options: DataOptions) -> None:
    """Raise DataError unless layouts, features and targets of all files go together."""
    _need_one_placing(layouts, options)
    sides: dict[str, Callable[[Layout], object]] = {
        "layout": lambda layout: layout.name,
        "number of features": lambda layout: layout.features,
        "targets": _target_form,
    }
    for side, of in sides.items():
        for other in layouts[1:]:
            if of(other) != of(layouts[0]):
                raise DataError(
                    f"the files differ in {side}: {of(layouts[0])} in {layouts[0].inputs}, "
                    f"{of(other)} in {other.inputs}",
                    expected=str(of(layouts[0])),
                    found=", ".join(f"{of(one)} in {one.inputs}" for one in layouts),
                    where=options.places(*(layout.inputs for layout in layouts)),
                    hint="run the files one at a time",
                )


def _need_one_placing(layouts: Sequence[Layout], options: DataOptions) -> None:
    """Raise DataError if one file has a target a step and another one a sequence."""
    infos = [layout.targets.info for layout in layouts if layout.targets is not None]
    by_step = [info.name for info in infos if info.per_step is True]
    by_sequence = [info.name for info in infos if info.per_step is False]
    if by_step and by_sequence:
        raise DataError(
            "the files differ in targets: one a step in some, one a sequence in others",
            expected=f"one a step, as in {by_step[0]}",
            found=f"one a sequence in {by_sequence[0]}",
            where=options.places(by_step[0], by_sequence[0]),
            hint="run the files one at a time",
        )


def _target_form(layout: Layout) -> str:
    if layout.targets is None:
        return "no targets"
    info = layout.targets.info
    return f"{info.kind} {info.shape}" if info.shape else info.kind
