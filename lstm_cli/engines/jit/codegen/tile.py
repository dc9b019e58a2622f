"""Panels of weights, and the inner products of rows with them, each sum held in a register.

A matrix product gives, for each gate, a row of columns: units, features, or projected features.
The columns are cut into panels. A panel has a few vectors of neighboring columns of every gate.
So all gates of a unit are computed together. A narrower last panel is the tail. In memory a
panel is [k][gate][column]: the weights that multiply number k of a row are contiguous.

A tile is some rows times one panel. Every tile sums an output over k in order, in one register. So
the bits of an output do not depend on the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from lstm_cli.engines.jit.codegen.ir import (
    Function,
    Module,
    StackSlot,
    Value,
    VectorType,
    fma,
    i64,
    vector_text,
)
from lstm_cli.engines.jit.runtime.machine import Machine

UNROLL = 2
"""Number of steps of k in one iteration of the inner loop."""

MAX_TILE_ROWS = 8
"""Largest number of rows of a tile; more rows only make the code longer."""


@dataclass(frozen=True)
class PanelShape:
    """Shape of a panel: `gate_vectors` vectors of columns for each of `gates` gates.

    With `bf16`, two neighboring bfloat16 numbers take the place of one float, in weights and in
    rows. Their products are summed in float32.
    """

    gates: int
    gate_vectors: int
    vector: VectorType
    bf16: bool = False

    @property
    def columns(self) -> int:
        """Number of columns of each gate."""
        return self.gate_vectors * self.vector.count

    @property
    def vectors(self) -> int:
        return self.gates * self.gate_vectors

    @property
    def width(self) -> int:
        """Number of weights that multiply one number of a row."""
        return self.gates * self.columns

    @property
    def name(self) -> str:
        return f"{self.gates}x{self.gate_vectors}x{self.vector.suffix}" + (
            "xbf16" if self.bf16 else ""
        )


@dataclass(frozen=True)
class PanelSplit:
    """Shapes of the panels that columns are cut into.

    Attributes
    ----------
    main
        Shape of the full panels.
    tail
        Shape of a narrower last panel. None: all panels are full.
    """

    main: PanelShape
    tail: PanelShape | None

    @property
    def shapes(self) -> tuple[PanelShape, ...]:
        return (self.main,) if self.tail is None else (self.main, self.tail)

    @property
    def name(self) -> str:
        """Text that is equal for equal kernels."""
        return " + ".join(shape.name for shape in self.shapes)

    @property
    def gates(self) -> int:
        return self.main.gates

    @property
    def with_bf16(self) -> PanelSplit:
        """This split, with a pair of bfloat16 numbers in place of each float."""
        tail = None if self.tail is None else replace(self.tail, bf16=True)
        return PanelSplit(replace(self.main, bf16=True), tail)


@dataclass(frozen=True)
class Columns:
    """A split of `size` columns: `count` main panels, and the tail if there is one."""

    split: PanelSplit
    size: int
    count: int

    @property
    def padded(self) -> int:
        """Number of columns of all panels, including padding."""
        tail = self.split.tail
        return self.count * self.split.main.columns + (tail.columns if tail else 0)

    @property
    def stride(self) -> int:
        """Number of columns rounded up to full vectors: the row stride of buffers."""
        count = self.split.main.vector.count
        return -(-self.size // count) * count

    @property
    def width(self) -> int:
        """Number of weights of all gates that multiply one number of a row, including padding."""
        return self.split.gates * self.padded


@lru_cache(maxsize=256)
def split_columns(
    size: int, gates: int, vector: VectorType, gate_vectors: int | None = None
) -> Columns:
    """Cut `size` columns of `gates` gates into panels.

    Parameters
    ----------
    gate_vectors
        Vectors per gate in a panel. None: as many as give a panel about four vectors.
    """
    gate_vectors = gate_vectors or max(1, 4 // gates)
    main = PanelShape(gates, gate_vectors, vector)
    count, rest = divmod(size, main.columns)
    half = vector.count // 2
    tail = None
    if half and rest and rest <= half:
        tail = PanelShape(gates, 1, VectorType(vector.element, half))
    elif rest:
        vectors = -(-rest // vector.count)
        if vectors == gate_vectors:
            count += 1
        else:
            tail = PanelShape(gates, vectors, vector)
    return Columns(PanelSplit(main, tail), size, count)


def max_tile_rows(machine: Machine, vectors: int) -> int:
    """Largest number of rows of a tile whose sums and operands fit in the registers."""
    if holds_row_numbers(machine, vectors):
        return (machine.registers - 1) // (vectors + 1)
    operands = vectors + (1 if machine.registers <= 16 else 2)
    return max(1, min(MAX_TILE_ROWS, (machine.registers - operands) // vectors))


def holds_row_numbers(machine: Machine, vectors: int) -> bool:
    """True if a step of k keeps a number of every row in registers, and one vector of weights.

    False: the step keeps all vectors of weights, and one number. With few registers and many
    vectors, True allows more rows. The compiler spills sums that do not fit to memory, which costs
    more than half of the speed.
    """
    return machine.registers <= 16 and vectors > 3


_OPERANDS = {
    "w": "ptr",
    "K": "i64",
    "times": "i64",
    "skip": "i64",
    "init": "ptr",
    "out": "ptr",
    "stride": "i64",
    "apart": "i64",
}
"""Parameters of a tile after its rows; see `TileEmitter.product`."""

_PANELS = {"panels": "i64", "w_step": "i64", "init_step": "i64", "out_step": "i64"}
"""Further parameters of several panels; see `TileEmitter.products`."""


class TileEmitter:
    """Emitter of a module's inner products; each function is emitted at its first use.

    Parameters
    ----------
    machine
        Machine whose registers the tiles fill.
    """

    def __init__(self, module: Module, machine: Machine) -> None:
        self.module, self.machine = module, machine
        self._tiles: dict[tuple[int, PanelShape], Function] = {}
        self._products: dict[tuple[PanelShape, bool], Function] = {}

    def rows(self, shape: PanelShape) -> int:
        """Number of rows of the largest tile."""
        return max_tile_rows(self.machine, shape.vectors)

    def product(self, shape: PanelShape) -> Function:
        """A function for any number of rows times one panel.

        out[r][gate][column] = init[gate][column] + sum over k of a[r][k] w[k][gate][column].
        The function's parameters: `a`, addresses of the rows; `rows`, their number; `w`, the panel;
        `K`, numbers per run of a row; `times`, runs per row; `skip`, numbers from the start of a
        run to the next; `init` and `out`; strides of `out`, in numbers: `stride` from row to row,
        and `apart` from gate to gate.
        """
        return self._product(shape, several=False)

    def products(self, shape: PanelShape) -> Function:
        """A function for any number of rows times several panels; faster for few rows.

        The function's parameters: those of `product`; the number of `panels`; and the strides
        `w_step`, `init_step` and `out_step` from one panel's data to the next, in numbers.
        """
        return self._product(shape, several=True)

    def _product(self, shape: PanelShape, *, several: bool) -> Function:
        if (shape, several) not in self._products:
            self._products[shape, several] = self._emit_product(shape, several)
        return self._products[shape, several]

    def _emit_product(self, shape: PanelShape, several: bool) -> Function:
        limit, element = self.rows(shape), shape.vector.element
        # Remaining rows use tiles of these heights only, since each height is code to compile.
        lower = [rows for rows in (4, 2, 1) if rows < limit]
        kinds = dict(a="ptr", rows="i64", **_OPERANDS) | (_PANELS if several else {})
        f = self.module.function(f"product{'s' if several else ''}_{shape.name}", kinds)
        a, rows, w, K, times, skip, init, out, stride, apart, *steps = f.args.values()
        panels = steps or [i64(1), i64(0), i64(0), i64(0)]

        def call(tile: Function, first: Value) -> None:
            begin = f.at(out, f.mul(first, stride), element)
            row = f.at(a, first, "ptr")
            f.call(tile, row, w, K, times, skip, init, begin, stride, apart, *panels)

        rest = f.rem(rows, limit)
        whole = f.sub(rows, rest)
        with f.loop(0, whole, limit) as first:
            call(self._tile(limit, shape), first)
        next_row = f.variable("i64", whole)
        for count in lower:
            with f.when(f.compare("ne", f.binary("and", rest, count), 0)):
                call(self._tile(count, shape), f.get(next_row))
                f.set(next_row, f.add(f.get(next_row), count))
        f.ret()
        return f

    def _tile(self, rows: int, shape: PanelShape) -> Function:
        if (rows, shape) not in self._tiles:
            self._tiles[rows, shape] = self._emit_tile(rows, shape)
        return self._tiles[rows, shape]

    def _emit_tile(self, rows: int, shape: PanelShape) -> Function:
        kinds = dict(a="ptr", **_OPERANDS, **_PANELS)
        f = self.module.function(f"tile_{rows}_{shape.name}", kinds)
        args, element = f.args, shape.vector.element
        with f.loop(0, args["panels"]) as p:
            w = f.at(args["w"], f.mul(p, args["w_step"]), element)
            init = f.at(args["init"], f.mul(p, args["init_step"]), element)
            out = f.at(args["out"], f.mul(p, args["out_step"]), element)
            self._emit_panel(f, rows, shape, w, init, out)
        f.ret()
        return f

    def _emit_panel(
        self, f: Function, rows: int, shape: PanelShape, weights: Value, init: Value, out: Value
    ) -> None:
        """Emit the sums of one panel, from their initial values to their results."""
        vector, element, K = shape.vector, shape.vector.element, f.args["K"]
        count = vector.count
        sums = []
        for v in range(shape.vectors):
            first = f.load(vector.type, f.at(init, v * count, element), 4)
            sums.append([f.variable(vector.type, first) for _ in range(rows)])
        step = self._step(f, rows, shape, sums)
        whole = f.mul(f.div(K, UNROLL), UNROLL)
        with f.loop(0, f.args["times"]) as run:
            shift = f.mul(run, f.args["skip"])
            starts = [f.load("ptr", f.at(f.args["a"], r, "ptr"), 8) for r in range(rows)]
            a = [f.at(start, shift, element) for start in starts]
            w = f.at(weights, f.mul(f.mul(run, K), shape.width), element)
            with f.loop(0, whole, UNROLL) as k:
                for offset in range(UNROLL):
                    step(a, w, k, offset)
            with f.loop(whole, K) as k:
                step(a, w, k, 0)
        for r in range(rows):
            row = f.at(out, f.mul(f.args["stride"], r), element)
            for v in range(shape.vectors):
                gate, place = divmod(v, shape.gate_vectors)
                begin = f.at(row, f.mul(f.args["apart"], gate), element)
                f.store(f.get(sums[v][r]), f.at(begin, place * count, element), 4)

    def _step(
        self, f: Function, rows: int, shape: PanelShape, sums: Sequence[Sequence[StackSlot]]
    ) -> Callable[[Sequence[Value], Value, Value, int], None]:
        """Emitter of the products of number ``k + offset`` of every row with its weights."""
        vector, element, count = shape.vector, shape.vector.element, shape.vector.count

        def step(a: Sequence[Value], w: Value, k: Value, offset: int) -> None:
            base = f.at(w, f.mul(k, shape.width), element)
            places = [offset * shape.width + v * count for v in range(shape.vectors)]
            weights = [f.at(base, p, element) for p in places]
            numbers = [f.at(f.at(a[r], k, element), offset, element) for r in range(rows)]
            if not shape.bf16:
                accumulate_products(f, vector, self.machine, weights, numbers, sums)
            elif self.machine.dot_bfloat16:
                _accumulate_dot_products(f, vector, weights, numbers, sums)
            else:
                for half in range(2):
                    accumulate_products(f, vector, self.machine, weights, numbers, sums, half)

        return step


def accumulate_products(
    f: Function,
    vector: VectorType,
    machine: Machine,
    weights: Sequence[Value],
    numbers: Sequence[Value],
    sums: Sequence[Sequence[StackSlot]],
    half: int | None = None,
) -> None:
    """Add each vector at `weights` times each number at `numbers` to ``sums[weight][number]``.

    With `half`, both are pairs of bfloat16: 0 multiplies their first numbers, 1 their second ones.
    """

    def broadcast(at: Value) -> Value:
        if half is None:
            return f.splat(f.load(vector.element, at), vector)
        pairs = f.splat(f.load("i32", at), VectorType("i32", vector.count))
        return _unpack_bfloat16(f, pairs, vector, half)

    def vector_at(at: Value) -> Value:
        if half is None:
            return f.load(vector.type, at, vector.bytes)
        return _unpack_bfloat16(f, f.load(vector.integers, at, vector.bytes), vector, half)

    def add(weight: Value, number: Value, total: StackSlot) -> None:
        f.set(total, fma(f, vector, weight, number, f.get(total)))

    if holds_row_numbers(machine, len(weights)):
        row_numbers = [broadcast(at) for at in numbers]
        for at, totals in zip(weights, sums, strict=True):
            weight = vector_at(at)
            for number, total in zip(row_numbers, totals, strict=True):
                add(weight, number, total)
    else:
        loaded = [vector_at(at) for at in weights]
        for r, at in enumerate(numbers):
            number = broadcast(at)
            for weight, totals in zip(loaded, sums, strict=True):
                add(weight, number, totals[r])


def round_to_bfloat16(f: Function, vector: VectorType, values: Value, machine: Machine) -> Value:
    """Numbers rounded to the nearest bfloat16, ties to even; NaN stays NaN.

    On a processor without an instruction for this, LLVM would call a library function, which is not
    linked. So there the bits are rounded as integers.
    """
    if machine.dot_bfloat16:
        return f.convert("fptrunc", values, vector_text(vector.count, "bfloat"))
    bits = f.convert("bitcast", values, vector.integers)
    upper = f.binary("lshr", bits, vector.integer(16))
    even = f.add(f.binary("and", upper, vector.integer(1)), vector.integer(0x7FFF))
    rounded = f.binary("lshr", f.binary("add", bits, even), vector.integer(16))
    quiet = f.binary("or", upper, vector.integer(0x40))
    chosen = f.select(f.fcompare("uno", values, values), quiet, rounded)
    return f.convert("trunc", chosen, vector_text(vector.count, "i16"))


def _unpack_bfloat16(f: Function, pairs: Value, vector: VectorType, half: int) -> Value:
    """The first or second number of pairs of bfloat16, as float; the first has the lower bits."""
    operation, bits = ("shl", 16) if half == 0 else ("and", -65536)
    return f.convert("bitcast", f.binary(operation, pairs, vector.integer(bits)), vector.type)


def _accumulate_dot_products(
    f: Function,
    vector: VectorType,
    weights: Sequence[Value],
    numbers: Sequence[Value],
    sums: Sequence[Sequence[StackSlot]],
) -> None:
    """Add both products of each pair of bfloat16 with one instruction."""
    kind = vector_text(2 * vector.count, "bfloat")
    name = f"llvm.x86.avx512bf16.dpbf16ps.{vector.bytes * 8}"
    loaded = [f.load(vector.integers, at, vector.bytes) for at in weights]
    for r, at in enumerate(numbers):
        pairs = f.splat(f.load("i32", at), VectorType("i32", vector.count))
        a = f.convert("bitcast", pairs, kind)
        for weight, totals in zip(loaded, sums, strict=True):
            w = f.convert("bitcast", weight, kind)
            f.set(totals[r], f.intrinsic(name, vector.type, f.get(totals[r]), w, a))
