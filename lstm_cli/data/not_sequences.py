"""Errors for HDF5 content other than sequences, recognized by the program that wrote it.

lstm-cli writes results and gates, Keras writes networks. pandas and PyTables write tables, anndata
writes sparse matrices, and NetCDF files hold several variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

import numpy as np

from lstm_cli.data.types import DataOptions
from lstm_cli.errors import DataError, counted, quote, quote_yaml
from lstm_cli.hdf5.dataset import Dataset, is_word
from lstm_cli.hdf5.group import Group
from lstm_cli.hdf5.limits import reading_errors
from lstm_cli.hdf5.writer import python_string, series_command
from lstm_cli.output_files import HDF5_ATTRIBUTE

MAX_MEMBERS = 50
"""Largest number of members of a group that are read."""
MAX_DEPTH = 4
"""Largest depth of groups that are searched."""
MAX_GROUPS = 200
"""Largest number of groups that are searched."""
MAX_LISTED = 6
"""Largest number of names that an error lists."""
DIRECTIONS = {"forward", "reverse"}
KERAS_ATTRIBUTES = ("model_config", "layer_names", "keras_version")
"""Attributes of the root group in files of Keras. Files of Keras 3 have none of them."""
SPARSE_ENCODINGS = ("csr_matrix", "csc_matrix")


class NotSequencesError(DataError):
    """The file holds content other than sequences.

    Attributes
    ----------
    roles
        Contents of datasets, by path. Empty unless lstm-cli wrote the file.
    """

    roles: Mapping[str, str] = MappingProxyType({})

    @property
    def by_lstm_cli(self) -> bool:
        """Whether lstm-cli wrote the file."""
        return bool(self.roles)


def refuse_results(group: Group, options: DataOptions) -> None:
    """Raise `NotSequencesError` for results and gates, unless the config names inputs in them."""
    if group.path != "/" or not has_attribute(group, HDF5_ATTRIBUTE):
        return
    if options.inputs is not None and group.find(options.inputs) is not None:
        return
    if gates := _find_gates(group):
        raise _gates_error(group, gates)
    outputs = _find_outputs(group)
    if outputs:
        raise _results_error(group, outputs)


def refuse_foreign_content(group: Group, options: DataOptions) -> None:
    """Raise `NotSequencesError` for content of Keras, pandas, PyTables and anndata."""
    if group.path == "/" and is_keras_network(group):
        raise NotSequencesError(
            f"{group.file} holds a Keras network, not sequences",
            expected="an HDF5 file with sequences as DATA",
            where=group.where,
            hint=f"give the file as CONFIG: lstm-cli inspect-shapes {quote(group.file)}",
        )
    tables = list(islice(_tables(group), MAX_MEMBERS))
    if tables and isinstance(tables[0], Dataset):
        raise compound_error(tables[0], group.file, options, tables)
    if tables and isinstance(tables[0], Group):
        error = _sparse_error if is_sparse(tables[0]) else _pandas_error
        raise error(tables[0], tables, options)


def is_keras_network(root: Group) -> bool:
    """Whether a file holds a Keras network, complete or weights only."""
    return any(has_attribute(root, name) for name in KERAS_ATTRIBUTES) or _is_keras_3(root)


def has_attribute(group: Group, name: str) -> bool:
    """Whether a group has an attribute. The attribute is not read."""
    with reading_errors(group.where):
        return name in group.handle.attrs


def is_table(group: Group) -> bool:
    """Whether a group is one table or matrix of pandas, PyTables or anndata."""
    return has_attribute(group, "pandas_type") or is_sparse(group)


def is_sparse(group: Group) -> bool:
    """Whether a group is a sparse matrix in the encoding of anndata."""
    return _text(group.attribute("encoding-type")) in SPARSE_ENCODINGS


def compound_error(
    table: Dataset, file: str, options: DataOptions, tables: Sequence[Group | Dataset] = ()
) -> NotSequencesError:
    """The error for rows of named columns, as PyTables, NumPy and h5py write them."""
    names, others = _columns(table)
    listed = ", ".join([*names, *(f"{name} (no number)" for name in others)][: 2 * MAX_LISTED])
    more = f"; {counted(len(tables) - 1, 'table')} more in the file" if len(tables) > 1 else ""
    return NotSequencesError(
        f"{table.where} does not hold numbers, but rows of named columns",
        expected="an array (T, D) of numbers",
        found=f"{counted(table.shape[0] if table.rank else 1, 'row')} of {listed}{more}",
        where=options.places(table.where),
        hint=_columns_hint(table, file, names) if names else None,
    )


def _columns_hint(table: Dataset, file: str, names: Sequence[str]) -> str:
    parts = ", ".join(f"t[{python_string(name)}].reshape(len(t), -1)" for name in names)
    return series_command(file, f"t = f[{python_string(table.path)}][:]", f"np.hstack([{parts}])")


def _columns(table: Dataset) -> tuple[list[str], list[str]]:
    """Names of numeric columns without the index and dates of pandas; and names of the others."""
    numbers: list[str] = []
    others: list[str] = []
    pandas = table.attribute("CLASS") is not None and table.path.endswith("/table")
    for name in table.dtype.names or ():
        kind = _text(table.attribute(f"{name}_dtype")) or ""
        number = table.dtype[name].base.kind in "iufb" and not kind.startswith(("datetime", "time"))
        (numbers if number and not (pandas and name == "index") else others).append(name)
    return numbers, others


def refuse_variables(names: Sequence[Dataset], group: Group, options: DataOptions) -> None:
    """Raise `NotSequencesError` for NetCDF variables with common axes: they are not sequences."""
    root = replace(group, handle=group.handle.file["/"], path="/")
    if not has_attribute(root, "_NCProperties") or options.layout is not None:
        return
    arrays = ", ".join(f"f[{python_string(dataset.path)}][:]" for dataset in names)
    raise NotSequencesError(
        f"{group.where} holds several NetCDF variables, and nothing says which are the inputs",
        expected="one array of inputs",
        found=", ".join(f"{dataset.path} {dataset.shape}" for dataset in names[:MAX_LISTED]),
        where=options.places(group.where),
        hint=f"in a config, data.inputs: {quote_yaml(names[0].path)} reads one of them; "
        "data.layout: groups reads each as a sequence; "
        f"{series_command(group.file, f'a = [{arrays}]', 'np.hstack(a)')}",
    )


def netcdf_notes(group: Group, inputs: Dataset) -> Iterator[str]:
    """Notes on NetCDF conventions of the inputs that are ignored: packing and the time axis."""
    packed = [name for name in ("scale_factor", "add_offset") if inputs.attribute(name) is not None]
    if packed:
        yield (
            f"{inputs.where} is packed: the numbers are read as stored, without "
            f"{' and '.join(packed)}"
        )
    time = next((s for n in ("time", "Time", "t") if (s := group.dataset(n)) is not None), None)
    if (
        time is None
        or not time.is_dimension_scale
        or inputs.rank != 3
        or time.shape != inputs.shape[:1]
    ):
        return
    if time.shape[0] not in inputs.shape[1:]:
        yield (
            f"the first axis of {inputs.where} {inputs.shape} is {time.path}, but is read as "
            f"sequences; reshape the array to {time.shape[0]} rows for one series (T, D)"
        )


def _tables(group: Group) -> Iterator[Group | Dataset]:
    """Tables of pandas and PyTables, and sparse matrices, in a group and below."""
    if is_table(group):
        yield group
        return
    for child in descendants(group, is_table):
        if isinstance(child, Group) or (child.dtype.names and not child.vlen):
            yield child


def descendants(top: Group, is_unit: Callable[[Group], bool]) -> Iterator[Group | Dataset]:
    """Datasets, and groups that are one unit, below a group. Each group is visited once."""
    todo, visited = [(top, 0)], {top.identity()}
    while todo:
        group, depth = todo.pop(0)
        for child in islice(group.members(), MAX_MEMBERS):
            if isinstance(child, Dataset) or is_unit(child):
                yield child
            elif depth == MAX_DEPTH or len(visited) >= MAX_GROUPS:
                continue
            elif child.identity() not in visited:
                visited.add(child.identity())
                todo.append((child, depth + 1))


def _pandas_error(
    frame: Group, frames: Sequence[Group | Dataset], options: DataOptions
) -> NotSequencesError:
    kind = _text(frame.attribute("pandas_type")) or ""
    more = ", ".join(one.where for one in frames[1:MAX_LISTED])
    table = frame.dataset("table")
    if table is not None and table.dtype.names:
        numbers, others = _columns(table)
        names = ", ".join(numbers + others)
        contents = f"{table.where}: {counted(table.shape[0], 'row')} of {names}"
        hint = _columns_hint(table, frame.file, numbers) if numbers else None
    else:
        blocks, others = _pandas_blocks(frame)
        parts = [f"{b.where} {b.shape}" + (f" holds {c}" if c else "") for b, c in blocks.items()]
        parts += [f"no numbers: {', '.join(others)}"] if others else []
        contents, hint = "; ".join(parts) or "nothing that holds numbers", None
        if len(blocks) == 1:
            (block,) = blocks
            hint = (
                f"in a config, data.inputs: {quote_yaml(block.path)} reads it as one series (T, D)"
            )
        elif blocks:
            arrays = ", ".join(f"f[{python_string(block.path)}][:]" for block in blocks)
            hint = series_command(frame.file, f"a = [{arrays}]", "np.hstack(a)")
    return NotSequencesError(
        f"{frame.where} is a {'series' if 'series' in kind else 'table'} of pandas ({kind})",
        expected="datasets with sequences",
        found=contents + (f"; other tables are {more}" if more else ""),
        where=options.places(frame.where),
        hint=hint,
    )


def _pandas_blocks(frame: Group) -> tuple[dict[Dataset, str], list[str]]:
    """Numeric arrays of a frame in pandas' fixed format with their columns; and the others."""
    blocks, others = {}, []
    for child in islice(frame.members(), MAX_MEMBERS):
        name = child.path.rpartition("/")[2]
        if name != "values" and not (name.startswith("block") and name.endswith("_values")):
            continue
        items = None if name == "values" else frame.dataset(name.replace("_values", "_items"))
        columns = "" if items is None else _column_names(items)
        number = isinstance(child, Dataset) and child.numeric and not child.vlen
        if isinstance(child, Dataset) and number and child.attribute("value_type") is None:
            blocks[child] = columns
        else:
            others.append(columns or name)
    return blocks, others


def _column_names(items: Dataset) -> str:
    if items.rank != 1 or items.in_heap or items.dtype.kind not in "SUiuf":
        return ""
    names = [_text(value) or str(value) for value in items.read(slice(0, MAX_LISTED)).tolist()]
    return ", ".join(names) + (", ..." if items.shape[0] > MAX_LISTED else "")


def _sparse_error(
    matrix: Group, matrices: Sequence[Group | Dataset], options: DataOptions
) -> NotSequencesError:
    by_row = is_word(matrix.attribute("encoding-type"), SPARSE_ENCODINGS[0])
    attribute, shape, hint = matrix.attribute("shape"), None, None
    if isinstance(attribute, np.ndarray) and attribute.dtype.kind in "iu" and attribute.ndim == 1:
        shape = tuple(attribute.tolist())
    if shape is not None and len(shape) == 2:
        major, minor = ("r", "c") if by_row else ("c", "r")
        count = shape[0] if by_row else shape[1]
        indptr, indices, values = (
            f"f[{python_string(f'{matrix.path}/{name}')}][:]"
            for name in ("indptr", "indices", "data")
        )
        lines = (
            f"x = np.zeros({shape}); {major} = np.repeat(np.arange({count}), np.diff({indptr})); "
            f"{minor} = {indices}; x[r, c] = {values}"
        )
        hint = series_command(matrix.file, lines, "x")
    return NotSequencesError(
        f"{matrix.where} is a sparse matrix ({_text(matrix.attribute('encoding-type'))})",
        expected="an array of numbers",
        found=None if shape is None else f"shape {shape}, in three parts",
        where=options.places(matrix.where),
        hint=hint,
    )


def _is_keras_3(group: Group) -> bool:
    layers = group.group("_layer_checkpoint_dependencies") or group.group("layers")
    inside = [] if layers is None else islice(layers.members(), MAX_MEMBERS)
    return any(isinstance(one, Group) and one.group("vars") is not None for one in inside)


def _find_gates(group: Group) -> list[Dataset]:
    """Datasets of gates and states of every step, as ``run --gates`` writes them."""
    layers = group.group("layers")
    if layers is None or group.find("outputs") is not None:
        return []
    return [
        dataset
        for layer in layers.members()
        if isinstance(layer, Group)
        for direction in layer.members()
        if isinstance(direction, Group) and direction.path.rpartition("/")[2] in DIRECTIONS
        for dataset in direction.members()
        if isinstance(dataset, Dataset)
    ]


def _gates_error(group: Group, gates: Sequence[Dataset]) -> NotSequencesError:
    count = counted(len(gates), "array")
    file, path = python_string(group.file), python_string(gates[0].path)
    error = NotSequencesError(
        f"{group.file} holds gates and states of every step, as lstm-cli run --gates writes them",
        expected="sequences that a network can read",
        found=f"{count}: {', '.join(f'{g.path} {g.shape}' for g in gates[:MAX_LISTED])}"
        + (", ..." if len(gates) > MAX_LISTED else ""),
        where=group.where,
        hint=f"in Python, h5py.File({file})[{path}][:] reads one of them",
    )
    error.roles = {gate.path: _gate_role(gate.path) for gate in gates}
    return error


def _gate_role(path: str) -> str:
    name = path.rpartition("/")[2]
    return f"{'state' if name in ('h', 'c') else 'gate'} {name}"


def _find_outputs(group: Group) -> list[Dataset]:
    if (one := group.dataset("outputs")) is not None:
        return [one]
    children = [child for child in islice(group.members(), MAX_MEMBERS) if isinstance(child, Group)]
    outputs = [child.dataset("outputs") for child in children]
    return [dataset for dataset in outputs if dataset is not None]


def _results_error(group: Group, outputs: Sequence[Dataset]) -> NotSequencesError:
    first, states = outputs[0], _state_roles(group)
    many = f" and {counted(len(outputs) - 1, 'more sequence')}" if len(outputs) > 1 else ""
    layers = sorted({path.split("/")[-2] for path in states}, key=int)
    final = f"; final states of layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}"
    file, path = python_string(group.file), python_string(first.path)
    hint = f"in Python, h5py.File({file})[{path}][:] reads the outputs"
    if states:
        hint += f"; lstm-cli run CONFIG DATA --state {quote(group.file)} begins with these states"
    error = NotSequencesError(
        f"{group.file} holds results, as lstm-cli run --output writes them",
        expected="sequences that a network can read",
        found=f"outputs {first.path} {first.shape}{many}" + (final if states else ""),
        where=group.where,
        hint=hint,
    )
    error.roles = {dataset.path: "outputs" for dataset in outputs} | states
    return error


def _state_roles(group: Group) -> dict[str, str]:
    """Role of each dataset of final states, by path."""
    roles = {}
    state = group.group("state")
    for layer in [] if state is None else state.members():
        name = layer.path.rpartition("/")[2]
        if isinstance(layer, Group) and name.isdecimal():
            for letter in ("h", "c"):
                if (dataset := layer.dataset(letter)) is not None:
                    roles[dataset.path] = f"final state {letter}"
    return roles


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None
