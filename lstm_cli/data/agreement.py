"""Whether several files can be one dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lstm_cli.data.types import DataOptions, Layout, TargetInfo
from lstm_cli.data.windows import Windows
from lstm_cli.errors import DataError


def need_alike(layouts: Sequence[Layout], options: DataOptions) -> None:
    """Raise DataError unless layouts, features and targets of all files go together."""
    _need_one_placing(layouts, options)
    common = common_targets(layouts)
    per_step = None if common is None else common.per_step
    sides: dict[str, Callable[[Layout], object]] = {
        "layout": lambda layout: layout.name,
        "number of features": lambda layout: layout.features,
        "targets": lambda layout: _target_form(layout, per_step),
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
    infos = _infos(layouts)
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


def common_targets(layouts: Sequence[Layout]) -> TargetInfo | None:
    """What the targets of all files are: a file that leaves open goes with those that tell.

    (N, T) of files with different T can only be one a step.
    """
    infos = _infos(layouts)
    told = [info for info in infos if info.per_step is not None]
    if not told and len({info.shape for info in infos}) > 1:
        return infos[0].placed(True)
    return next(iter(told + infos), None)


def _infos(layouts: Sequence[Layout]) -> list[TargetInfo]:
    return [layout.targets.info for layout in layouts if layout.targets is not None]


def _target_form(layout: Layout, per_step: bool | None) -> str:
    if layout.targets is None:
        return "no targets"
    if isinstance(layout, Windows) and layout.targets_of is not None:
        return f"{layout.targets_of} {layout.targets.info.shape}"
    info = layout.targets.info.placed(per_step)
    # Where the network is to decide, its kinds are those of one a step.
    kind = info.kind if info.per_step is not None else info.placed(True).kind
    return f"{kind} {info.shape}" if info.shape else kind
