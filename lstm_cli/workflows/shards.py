"""Shares of a dataset, the shards in which their results are written, and joining these.

A share is some consecutive sequences. Its shard is a file beside the results that are wanted. It
holds the share's results, the sums of its metrics, and a description of the model and the data. The
joined file equals that of one run, and so do the metrics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.data import ResultWriter, SequenceData
from lstm_cli.data.dataset_roles import read_texts
from lstm_cli.data.file_arguments import SHARD
from lstm_cli.data.lengths import starts_of
from lstm_cli.data.result_files import BY_SEQUENCE
from lstm_cli.errors import DataError, counted, quote
from lstm_cli.hdf5.file import Hdf5File, split_argument
from lstm_cli.hdf5.joined_file import JoinedFile
from lstm_cli.output_files import HDF5_ATTRIBUTE, has_producer_mark
from lstm_cli.training.metric_sums import MetricSums
from lstm_cli.version import __version__
from lstm_cli.workflows.model import Model
from lstm_cli.workflows.run import (
    TARGETS_NOT_USED,
    NotFiniteOutputs,
    PartialRun,
    RunFiles,
    RunReport,
    run_dataset,
)

RESULTS, DESCRIPTION, METRICS = "results", "shard/description", "shard/metrics"
"""Group of a shard with its results, dataset of its description, and group of its sums."""

IDENTITY = {
    "version": "version of lstm-cli",
    "dtype": "number type",
    "weights": "weights",
    "config": "config",
    "engine": "engine",
    "data": "data",
    "state": "initial states",
}
"""Keys of a description that are the same in all shards of a run, and their names in messages."""

MODIFIED = "modified"
"""Key of the times at which the files of the data were changed.

They decide whether a finished shard is kept. They need not be equal to join shards: a job of a
cluster may compute on a copy of the data.
"""

MOST_LISTED = 5
"""Number of missing shards that a message names."""


@dataclass(frozen=True)
class Share:
    """One of several parts of a dataset.

    Attributes
    ----------
    number, of
        Number of the share, from 1, and number of all shares.
    first, stop
        Number of its first sequence, and of the one after its last.
    """

    number: int
    of: int
    first: int
    stop: int


def share_of(data: SequenceData, number: int, of: int) -> Share:
    """A share of consecutive sequences, with about as many steps as each other share."""
    starts = starts_of(data.lengths())
    if not starts[-1]:
        starts = np.arange(len(starts))
    first, stop = (_nearest(starts, int(starts[-1]) * k // of) for k in (number - 1, number))
    return Share(number, of, 0 if number == 1 else first, data.count if number == of else stop)


def _nearest(starts: Any, step: int) -> int:
    """Number of the sequence that starts nearest to a step."""
    after = int(np.searchsorted(starts, step))
    return after - 1 if after and step - starts[after - 1] < starts[after] - step else after


def shard_path(output: str | Path, number: int, of: int) -> Path:
    """Path of a shard of the results `output`."""
    return Path(f"{output}.shard-{number}-of-{of}")


def run_share(
    model: Model,
    data: SequenceData,
    share: Share,
    *,
    files: RunFiles,
    batch_size: int,
    halve: bool = False,
    progress: Callable[[int], None] | None = None,
) -> tuple[RunReport, str | None]:
    """Run a share, and write its shard beside `files.output` if this is set.

    See `lstm_cli.workflows.run.run_dataset` for the parameters.

    Returns
    -------
    report, note
        Report of the share, without metrics; a note if an earlier run has left its shard.
    """
    description, note = describe_share(model, data, share, files.state), None
    if files.output is not None:
        path = shard_path(files.output, share.number, share.of)
        shard, note = finished_shard(path, description)
        if shard is not None:
            return shard.report, note
        files = replace(files, output=path)

    def complete(writer: ResultWriter, report: RunReport) -> None:
        text = json.dumps({**description, "report": _report_values(report)})
        writer.put(DESCRIPTION, text)
        for name, values in ({} if report.sums is None else report.sums.state_arrays()).items():
            writer.put(f"{METRICS}/{name}", values)

    report = run_dataset(
        model,
        data,
        batch_size=batch_size,
        halve=halve,
        files=files,
        progress=progress,
        part=PartialRun((share.first, share.stop), RESULTS, complete),
    )
    return report, note


def describe_share(
    model: Model, data: SequenceData, share: Share, state: str | Path | None
) -> dict[str, Any]:
    """Description of a share, and of the model and the data that it belongs to."""
    engine = model.network.engine
    states = [] if state is None else [split_argument(str(state))[0]]
    status = [os.stat(path) for path in (*data.paths, *filter(os.path.exists, states))]
    sizes = [one.st_size for one in status]
    counts = [count for _, count in data.starts]
    return {
        "version": __version__,
        "weights": model.weights_sha256,
        "config": model.config.to_yaml(),
        "engine": engine.name,
        "dtype": engine.dtype,
        "data": [list(file) for file in zip(data.arguments, sizes, counts, strict=False)],
        "state": None if state is None else [str(state), sizes[-1]],
        MODIFIED: [one.st_mtime_ns for one in status],
        "share": asdict(share),
    }


def _report_values(report: RunReport) -> dict[str, Any]:
    return {
        "sequences": report.sequences,
        "steps": report.steps,
        "output_shape": report.output_shape,
        "loss": report.loss,
        "notes": report.notes,
        "not_finite": None if report.not_finite is None else asdict(report.not_finite),
    }


@dataclass(frozen=True)
class Shard:
    """A finished shard.

    Attributes
    ----------
    path
        Path of the file.
    description
        See `describe_share`.
    report
        Report of the run of its share, without timings and metrics.
    """

    path: Path
    description: Mapping[str, Any]
    report: RunReport


def read_shard(path: Path) -> Shard:
    """Read the description and the sums of a shard.

    Raises
    ------
    DataError
        The file is damaged, or is no shard.
    """
    with Hdf5File(f"{path}:/", allow_external=None) as file:
        dataset = file.root.dataset(DESCRIPTION)
        texts = None if dataset is None else read_texts(dataset)
        group = file.root.group(METRICS)
        arrays = {}
        if group is not None:
            for name in group.names():
                if (stored := group.dataset(name)) is not None:
                    arrays[name] = stored.read()
    try:
        description = json.loads((texts or [""])[0])
        values = description["report"]
        sums = None
        if arrays:
            sums = MetricSums()
            sums.load_state(arrays)
        bad = values["not_finite"]
        report = RunReport(
            values["sequences"],
            values["steps"],
            tuple(values["output_shape"]),
            (),
            0.0,
            loss=values["loss"],
            notes=tuple(values["notes"]),
            not_finite=None if bad is None else NotFiniteOutputs(**bad),
            sums=sums,
        )
        Share(**description["share"])
        identity = {name: description[name] for name in (*IDENTITY, MODIFIED, "share")}
        return Shard(path, identity, report)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is no shard of results",
            expected="the results of a share, with a description",
            found=f"{type(error).__name__}: {error}",
            where=str(path),
        ) from error


def finished_shard(path: Path, description: Mapping[str, Any]) -> tuple[Shard | None, str | None]:
    """The shard at a path if it has this description; else None, and a note why it is replaced.

    A shard of another model or of other data is replaced, as results are. Joining refuses what is
    left of the other run.
    """
    if not path.exists() or not has_producer_mark(path):
        return None, None
    try:
        shard = read_shard(path)
    except DataError as error:
        return None, f"{path} is done again: {error.problems[0].what}"
    wanted = json.loads(json.dumps(description))
    names = {**IDENTITY, MODIFIED: "data, which have changed", "share": "share"}
    for name, noun in names.items():
        if shard.description[name] != wanted[name]:
            return None, f"{path} is done again: it belongs to other {noun}"
    return shard, f"{path} is finished and was not run again"


def joined_report(reports: Sequence[RunReport]) -> RunReport:
    """Report of one run, from the reports of its shares in their order."""
    notes: list[str] = []
    for note in (note for report in reports for note in report.notes):
        unused = note.startswith(TARGETS_NOT_USED)
        if note not in notes and not (
            unused and any(n.startswith(TARGETS_NOT_USED) for n in notes)
        ):
            notes.append(note)
    every = [report.sums for report in reports]
    sums = None if None in every else MetricSums()
    for one in every:
        if sums is not None and one is not None:
            sums.add(one)
    bad = [report.not_finite for report in reports if report.not_finite is not None]
    count = sum(report.sequences for report in reports)
    return RunReport(
        count,
        sum(report.steps for report in reports),
        (count, *reports[0].output_shape[1:]),
        (),
        0.0,
        {} if sums is None else sums.result(),
        None if sums is None else reports[0].loss,
        tuple(notes),
        NotFiniteOutputs(sum(one.sequences for one in bad), bad[0].first) if bad else None,
    )


def join_shards(
    output: str | Path, *, force: bool = False, progress: Callable[[int], None] | None = None
) -> tuple[RunReport, int]:
    """Write the results of one run from its shards, and remove these.

    Parameters
    ----------
    progress
        Function that is called after every shard, with 1.

    Returns
    -------
    report, count
        Report of one run, without timings; number of shards.

    Raises
    ------
    DataError
        A shard is missing or damaged, or belongs to another run.
    LstmCliError
        The results cannot be written.
    """
    shards = [read_shard(path) for path in find_shards(output)]
    _require_one_run(shards)
    first = shards[0].description
    attributes = {
        HDF5_ATTRIBUTE: first["version"],
        "config": first["config"],
        "weights_sha256": first["weights"],
    }
    paths = [str(shard.path) for shard in shards]
    with JoinedFile(
        str(output),
        paths,
        group=RESULTS,
        has_rows=lambda name: name.partition("/")[0] in BY_SEQUENCE,
        attributes=attributes,
        force=force,
    ) as writer:
        for _ in writer.copy():
            if progress is not None:
                progress(1)
    report = joined_report([shard.report for shard in shards])
    for path in paths:
        with suppress(OSError):
            os.unlink(path)
    return report, len(shards)


def find_shards(output: str | Path) -> list[Path]:
    """Paths of all shards of results, in the order of their numbers.

    Raises
    ------
    DataError
        There are none, or some are missing, or there are shards of several divisions.
    """
    folder, name = os.path.split(output)
    names = os.listdir(folder or ".") if os.path.isdir(folder or ".") else []
    by_count: dict[int, set[int]] = {}
    for match in map(SHARD.fullmatch, names):
        if match is not None and match[1] == name:
            by_count.setdefault(int(match[3]), set()).add(int(match[2]))
    if len(by_count) != 1:
        raise _division_error(output, by_count)
    ((of, numbers),) = by_count.items()
    missing = sorted(set(range(1, of + 1)) - numbers)
    if missing:
        raise _missing_error(output, missing, of)
    return [shard_path(output, number, of) for number in range(1, of + 1)]


def _division_error(output: str | Path, by_count: Mapping[int, set[int]]) -> DataError:
    """The error for no shards, or for shards of several numbers of shares."""
    pattern = f"{output}.shard-K-of-N"
    if not by_count:
        hint = f"lstm-cli run CONFIG DATA --output {quote(output)} --shard 1/2 writes one"
        return DataError(
            f"{output} has no shards",
            expected=f"{pattern}, for each K from 1 to N",
            where=str(output),
            hint=hint,
        )
    fewest = min(by_count, key=lambda of: len(by_count[of]))
    return DataError(
        f"{output} has shards of several divisions",
        expected=f"{pattern} of one N",
        found=", ".join(f"{len(numbers)} of {of}" for of, numbers in sorted(by_count.items())),
        where=str(output),
        hint=f"rm {quote(output)}.shard-*-of-{fewest} removes those of one division",
    )


def _missing_error(output: str | Path, missing: Sequence[int], of: int) -> DataError:
    shown = ", ".join(map(str, missing[:MOST_LISTED]))
    more = f" and {len(missing) - MOST_LISTED} more" if len(missing) > MOST_LISTED else ""
    return DataError(
        f"{output} cannot be joined: {counted(len(missing), 'shard')} of {of} "
        f"{'is' if len(missing) == 1 else 'are'} missing, number {shown}{more}",
        expected=f"{shard_path(output, missing[0], of)}",
        found=counted(of - len(missing), "shard"),
        where=str(output),
        hint=f"lstm-cli run CONFIG DATA --output {quote(output)} --shard {missing[0]}/{of} "
        "writes it",
    )


def _require_one_run(shards: Sequence[Shard]) -> None:
    """Raise DataError unless all shards belong to one run, and follow one another."""
    first = shards[0]
    for shard in shards[1:]:
        for name, noun in IDENTITY.items():
            wanted, found = first.description[name], shard.description[name]
            if wanted != found:
                raise _other_run_error(shard, first, noun, *_difference(wanted, found))
    end = 0
    for shard in shards:
        share = Share(**shard.description["share"])
        if share.first != end:
            raise _other_run_error(
                shard, first, "data", f"sequences from {end}", f"sequences from {share.first}"
            )
        end = share.stop


def _difference(wanted: Any, found: Any) -> tuple[str, str]:
    """Two values in words: for lists, the first parts that differ."""
    if isinstance(wanted, list) and isinstance(found, list):
        pairs = [(a, b) for a, b in zip(wanted, found, strict=False) if a != b]
        if pairs and isinstance(pairs[0][0], list):
            return tuple(  # type: ignore[return-value]
                f"{name}, {counted(size, 'byte', grouped=True)}, {counted(count, 'sequence')}"
                for name, size, count in pairs[0]
            )
        if len(wanted) != len(found):
            return counted(len(wanted), "file"), counted(len(found), "file")
    if isinstance(wanted, str) and isinstance(found, str) and "\n" in wanted:
        lines = zip((*wanted.splitlines(), ""), (*found.splitlines(), ""), strict=False)
        return next((a.strip(), b.strip()) for a, b in lines if a != b)
    return str(wanted), str(found)


def _other_run_error(shard: Shard, first: Shard, noun: str, expected: str, found: str) -> DataError:
    number, of = shard.description["share"]["number"], shard.description["share"]["of"]
    return DataError(
        f"{shard.path} belongs to other {noun} than {first.path}",
        expected=expected,
        found=found,
        where=(str(shard.path), str(first.path)),
        hint=f"run the shares of the older one again, for example --shard {number}/{of}",
    )
