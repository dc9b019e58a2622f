"""HDF5 files that hold something else than sequences for a network: told by what wrote them.

Results and gates of lstm-cli itself, networks of Keras, tables of pandas and PyTables, sparse
matrices of anndata, variables of NetCDF.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from types import MappingProxyType

import numpy as np

from lstm_cli.data.links import Folder
from lstm_cli.data.rewriting import converting, text
from lstm_cli.data.storage import Stored, is_word, reading
from lstm_cli.data.types import DataOptions
from lstm_cli.errors import DataError, counted, quote, quote_yaml
from lstm_cli.output_files import HDF5_ATTRIBUTE

LOOK_AT = 50
"""Members of a group that are looked at."""
DEPTH = 4
MOST_GROUPS = 200
"""Levels of groups, and groups, that are searched for what else may be meant."""
SHOWN = 6
DIRECTIONS = {"forward", "reverse"}
KERAS = ("model_config", "layer_names", "keras_version")
"""Attributes of the root of a file of Keras; that of Keras 3 has groups alone."""
SPARSE = ("csr_matrix", "csc_matrix")


class OriginError(DataError):
    """The file is known to hold something else than sequences.

    Attributes
    ----------
    roles
        Path of datasets to what they hold.
    """

    roles: Mapping[str, str] = MappingProxyType({})

    @property
    def own(self) -> bool:
        """Whether lstm-cli wrote it."""
        return bool(self.roles)


def refuse_own(folder: Folder, options: DataOptions) -> None:
    """Raise `OriginError` for results and gates, unless the config names inputs among them."""
    if folder.path != "/" or not has(folder, HDF5_ATTRIBUTE):
        return
    if options.inputs is not None and folder.find(options.inputs) is not None:
        return
    if gates := _gates(folder):
        raise _gates_error(folder, gates)
    outputs = _outputs(folder)
    if outputs:
        raise _results_error(folder, outputs)


def refuse_foreign(folder: Folder, options: DataOptions) -> None:
    """Raise `OriginError` for what Keras, pandas, PyTables and anndata write."""
    if folder.path == "/" and is_network(folder):
        raise OriginError(
            f"{folder.file} holds a network of Keras, and no sequences",
            expected="an HDF5 file with sequences as DATA",
            where=folder.where,
            hint=f"it stands in the place of CONFIG: lstm-cli inspect-shapes {quote(folder.file)}",
        )
    tables = list(islice(_tables(folder), LOOK_AT))
    if tables and isinstance(tables[0], Stored):
        raise compound_error(tables[0], folder.file, options, tables)
    if tables and isinstance(tables[0], Folder):
        error = _sparse_error if is_sparse(tables[0]) else _pandas_error
        raise error(tables[0], tables, options)


def is_network(root: Folder) -> bool:
    """Whether a file is one of Keras, whole or weights alone."""
    return any(has(root, name) for name in KERAS) or _is_keras_3(root)


def has(folder: Folder, name: str) -> bool:
    """Whether a group has an attribute, which is not read."""
    with reading(folder.where):
        return name in folder.group.attrs


def is_table(folder: Folder) -> bool:
    """Whether a group is one table or matrix of pandas, PyTables or anndata, in parts."""
    return has(folder, "pandas_type") or is_sparse(folder)


def is_sparse(folder: Folder) -> bool:
    """Whether a group is a sparse matrix of anndata or SciPy's users."""
    return _text(folder.attribute("encoding-type")) in SPARSE


def compound_error(
    table: Stored, file: str, options: DataOptions, others: Sequence[Folder | Stored] = ()
) -> OriginError:
    """The error for rows of named fields, as PyTables, NumPy and h5py write them."""
    names, left = _fields(table)
    shown = ", ".join([*names, *(f"{name} (no number)" for name in left)][: 2 * SHOWN])
    more = f"; {counted(len(others) - 1, 'table')} more in the file" if len(others) > 1 else ""
    return OriginError(
        f"{table.where} does not hold numbers, but rows of named columns",
        expected="an array (T, D) of numbers",
        found=f"{counted(table.shape[0] if table.rank else 1, 'row')} of {shown}{more}",
        where=options.places(table.where),
        hint=_columns_hint(table, file, names) if names else None,
    )


def _columns_hint(table: Stored, file: str, names: Sequence[str]) -> str:
    parts = ", ".join(f"t[{text(name)}].reshape(len(t), -1)" for name in names)
    return converting(file, f"t = f[{text(table.path)}][:]", f"np.hstack([{parts}])")


def _fields(table: Stored) -> tuple[list[str], list[str]]:
    """Columns that hold numbers, but for pandas' index and its dates; and the others."""
    numbers: list[str] = []
    others: list[str] = []
    pandas = table.attribute("CLASS") is not None and table.path.endswith("/table")
    for name in table.dtype.names or ():
        kind = _text(table.attribute(f"{name}_dtype")) or ""
        number = table.dtype[name].base.kind in "iufb" and not kind.startswith(("datetime", "time"))
        (numbers if number and not (pandas and name == "index") else others).append(name)
    return numbers, others


def refuse_variables(names: Sequence[Stored], folder: Folder, options: DataOptions) -> None:
    """Raise `OriginError` for variables of NetCDF over the same axes: hardly a sequence each."""
    root = replace(folder, group=folder.group.file["/"], path="/")
    if not has(root, "_NCProperties") or options.layout is not None:
        return
    arrays = ", ".join(f"f[{text(stored.path)}][:]" for stored in names)
    raise OriginError(
        f"{folder.where} holds several variables of NetCDF: nothing says which are the inputs",
        expected="one array of inputs",
        found=", ".join(f"{stored.path} {stored.shape}" for stored in names[:SHOWN]),
        where=options.places(folder.where),
        hint=f"in a config, data.inputs: {quote_yaml(names[0].path)} takes one of them; "
        "data.layout: groups takes each for a sequence; "
        f"{converting(folder.file, f'a = [{arrays}]', 'np.hstack(a)')}",
    )


def netcdf_notes(folder: Folder, inputs: Stored) -> Iterator[str]:
    """Notes on what NetCDF says of the inputs, and is not heeded: packing, the axis of time."""
    packed = [name for name in ("scale_factor", "add_offset") if inputs.attribute(name) is not None]
    if packed:
        yield (
            f"{inputs.where} is packed: its {' and '.join(packed)} are not applied, the numbers "
            "are read as stored"
        )
    time = next((s for n in ("time", "Time", "t") if (s := folder.dataset(n)) is not None), None)
    if time is None or not time.is_axis or inputs.rank != 3 or time.shape != inputs.shape[:1]:
        return
    if time.shape[0] not in inputs.shape[1:]:
        yield (
            f"{inputs.where} {inputs.shape} has {time.path} for its first axis, which is taken "
            f"for sequences; as one series (T, D) it would be reshaped to {time.shape[0]} rows"
        )


def _tables(folder: Folder) -> Iterator[Folder | Stored]:
    """Tables of pandas and PyTables, and sparse matrices, in a group and below it."""
    if is_table(folder):
        yield folder
        return
    for child in below(folder, is_table):
        if isinstance(child, Folder) or (child.dtype.names and not child.vlen):
            yield child


def below(top: Folder, whole: Callable[[Folder], bool]) -> Iterator[Folder | Stored]:
    """Datasets, and groups that are `whole`, below a group; each group is looked into once."""
    todo, seen = [(top, 0)], {top.identity()}
    while todo:
        folder, depth = todo.pop(0)
        for child in islice(folder.members(), LOOK_AT):
            if isinstance(child, Stored) or whole(child):
                yield child
            elif depth < DEPTH and len(seen) < MOST_GROUPS and child.identity() not in seen:
                seen.add(child.identity())
                todo.append((child, depth + 1))


def _pandas_error(
    frame: Folder, frames: Sequence[Folder | Stored], options: DataOptions
) -> OriginError:
    kind = _text(frame.attribute("pandas_type")) or ""
    more = ", ".join(one.where for one in frames[1:SHOWN])
    table = frame.dataset("table")
    if table is not None and table.dtype.names:
        numbers, left = _fields(table)
        found = f"{table.where}: {counted(table.shape[0], 'row')} of {', '.join(numbers + left)}"
        hint = _columns_hint(table, frame.file, numbers) if numbers else None
    else:
        blocks, others = _blocks(frame)
        parts = [f"{b.where} {b.shape}" + (f" holds {c}" if c else "") for b, c in blocks.items()]
        parts += [f"no numbers: {', '.join(others)}"] if others else []
        found, hint = "; ".join(parts) or "nothing that holds numbers", None
        if len(blocks) == 1:
            (block,) = blocks
            hint = (
                f"in a config, data.inputs: {quote_yaml(block.path)} reads it as one series (T, D)"
            )
        elif blocks:
            arrays = ", ".join(f"f[{text(block.path)}][:]" for block in blocks)
            hint = converting(frame.file, f"a = [{arrays}]", "np.hstack(a)")
    return OriginError(
        f"{frame.where} is a {'series' if 'series' in kind else 'table'} of pandas ({kind})",
        expected="datasets with sequences",
        found=found + (f"; beside it {more}" if more else ""),
        where=options.places(frame.where),
        hint=hint,
    )


def _blocks(frame: Folder) -> tuple[dict[Stored, str], list[str]]:
    """Arrays of numbers of a frame in pandas' fixed format, with their columns; and the others."""
    blocks, others = {}, []
    for child in islice(frame.members(), LOOK_AT):
        name = child.path.rpartition("/")[2]
        if name != "values" and not (name.startswith("block") and name.endswith("_values")):
            continue
        items = None if name == "values" else frame.dataset(name.replace("_values", "_items"))
        columns = "" if items is None else _listed(items)
        number = isinstance(child, Stored) and child.numeric and not child.vlen
        if isinstance(child, Stored) and number and child.attribute("value_type") is None:
            blocks[child] = columns
        else:
            others.append(columns or name)
    return blocks, others


def _listed(items: Stored) -> str:
    """Names of columns."""
    if items.rank != 1 or items.in_heap or items.dtype.kind not in "SUiuf":
        return ""
    names = [_text(value) or str(value) for value in items.read(slice(0, SHOWN)).tolist()]
    return ", ".join(names) + (", ..." if items.shape[0] > SHOWN else "")


def _sparse_error(
    matrix: Folder, matrices: Sequence[Folder | Stored], options: DataOptions
) -> OriginError:
    by_row = is_word(matrix.attribute("encoding-type"), SPARSE[0])
    stored, shape, hint = matrix.attribute("shape"), None, None
    if isinstance(stored, np.ndarray) and stored.dtype.kind in "iu" and stored.ndim == 1:
        shape = tuple(stored.tolist())
    if shape is not None and len(shape) == 2:
        own, other = ("r", "c") if by_row else ("c", "r")
        path = matrix.path
        count = shape[0] if by_row else shape[1]
        lines = (
            f"x = np.zeros({shape}); "
            f"{own} = np.repeat(np.arange({count}), np.diff(f[{text(path + '/indptr')}][:])); "
            f"{other} = f[{text(path + '/indices')}][:]; x[r, c] = f[{text(path + '/data')}][:]"
        )
        hint = converting(matrix.file, lines, "x")
    return OriginError(
        f"{matrix.where} is a sparse matrix ({_text(matrix.attribute('encoding-type'))})",
        expected="an array of numbers",
        found=None if shape is None else f"shape {shape}, in three parts",
        where=options.places(matrix.where),
        hint=hint,
    )


def _is_keras_3(folder: Folder) -> bool:
    """Whether a file has the groups that Keras 3 writes weights into."""
    layers = folder.folder("_layer_checkpoint_dependencies") or folder.folder("layers")
    inside = [] if layers is None else islice(layers.members(), LOOK_AT)
    return any(isinstance(one, Folder) and one.folder("vars") is not None for one in inside)


def _gates(folder: Folder) -> list[Stored]:
    """Gates and states of every step, as ``run --gates`` writes them."""
    layers = folder.folder("layers")
    if layers is None or folder.find("outputs") is not None:
        return []
    return [
        stored
        for layer in layers.members()
        if isinstance(layer, Folder)
        for direction in layer.members()
        if isinstance(direction, Folder) and direction.path.rpartition("/")[2] in DIRECTIONS
        for stored in direction.members()
        if isinstance(stored, Stored)
    ]


def _gates_error(folder: Folder, gates: Sequence[Stored]) -> OriginError:
    one = gates[0]
    count = counted(len(gates), "array")
    error = OriginError(
        f"{folder.file} holds gates and states of every step, as lstm-cli run --gates writes them",
        expected="sequences that a network can read",
        found=f"{count}: {', '.join(f'{g.path} {g.shape}' for g in gates[:SHOWN])}"
        + (", ..." if len(gates) > SHOWN else ""),
        where=folder.where,
        hint=f"in Python, h5py.File({text(folder.file)})[{text(one.path)}][:] reads one of them",
    )
    error.roles = {gate.path: _gate_role(gate.path) for gate in gates}
    return error


def _gate_role(path: str) -> str:
    name = path.rpartition("/")[2]
    return f"{'state' if name in ('h', 'c') else 'gate'} {name}"


def _outputs(folder: Folder) -> list[Stored]:
    """Outputs of a run: one dataset, or one in each sequence's group."""
    if (one := folder.dataset("outputs")) is not None:
        return [one]
    children = [child for child in islice(folder.members(), LOOK_AT) if isinstance(child, Folder)]
    found = [child.dataset("outputs") for child in children]
    return [stored for stored in found if stored is not None]


def _results_error(folder: Folder, outputs: Sequence[Stored]) -> OriginError:
    first, states = outputs[0], _states(folder)
    many = f" and {counted(len(outputs) - 1, 'more sequence')}" if len(outputs) > 1 else ""
    layers = sorted({path.split("/")[-2] for path in states}, key=int)
    final = f"; final states of layer{'s' if len(layers) > 1 else ''} {', '.join(layers)}"
    hint = f"in Python, h5py.File({text(folder.file)})[{text(first.path)}][:] reads the outputs"
    if states:
        hint += f"; lstm-cli run CONFIG DATA --state {quote(folder.file)} begins with these states"
    error = OriginError(
        f"{folder.file} holds results, as lstm-cli run --output writes them",
        expected="sequences that a network can read",
        found=f"outputs {first.path} {first.shape}{many}" + (final if states else ""),
        where=folder.where,
        hint=hint,
    )
    error.roles = {stored.path: "outputs" for stored in outputs} | states
    return error


def _states(folder: Folder) -> dict[str, str]:
    """Path of final states to what they are."""
    found = {}
    state = folder.folder("state")
    for layer in [] if state is None else state.members():
        name = layer.path.rpartition("/")[2]
        if isinstance(layer, Folder) and name.isdecimal():
            for letter in ("h", "c"):
                if (stored := layer.dataset(letter)) is not None:
                    found[stored.path] = f"final state {letter}"
    return found


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else None
