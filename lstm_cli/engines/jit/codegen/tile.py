"""How weights are laid out for the kernels: panels, and the numbers of columns they cover.

A matrix product gives, for each gate, a row of columns: units, features, or projected features.
The columns are cut into panels. One panel holds `per` vectors of neighbouring columns of every
gate, so that all gates of a unit are at hand together; the last, narrower panel is the tail.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from lstm_cli.engines.jit.codegen.ir import (
    Function,
    Lanes,
    Module,
    Value,
    Variable,
    fma,
    i64,
    vector,
)
from lstm_cli.engines.jit.runtime.machine import Machine


@dataclass(frozen=True)
class Split:
    """A row of columns for each gate, cut into panels.

    Attributes
    ----------
    main, tail
        The shape of all panels but the last, and of a narrower last one.
    """

    main: Part
    tail: Part | None

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.main,) if self.tail is None else (self.main, self.tail)

    @property
    def name(self) -> str:
        """Equal for equal kernels."""
        return " + ".join(part.name for part in self.parts)

    @property
    def gates(self) -> int:
        return self.main.gates

    @property
    def paired(self) -> Split:
        """The same for pairs of bfloat16."""
        tail = None if self.tail is None else replace(self.tail, pairs=True)
        return Split(replace(self.main, pairs=True), tail)


@dataclass(frozen=True)
class Columns:
    """A split of `size` columns: `count` main panels, and the tail if there is one."""

    split: Split
    size: int
    count: int

    @property
    def padded(self) -> int:
        """Columns with those that only fill the last vector."""
        tail = self.split.tail
        return self.count * self.split.main.columns + (tail.columns if tail else 0)

    @property
    def stride(self) -> int:
        """Columns rounded up to whole vectors: how far apart rows of them are kept."""
        count = self.split.main.lanes.count
        return -(-self.size // count) * count

    @property
    def width(self) -> int:
        """Numbers for each k, all gates, padded."""
        return self.split.gates * self.padded


@lru_cache(maxsize=256)
def columns(size: int, gates: int, lanes: Lanes, per: int | None = None) -> Columns:
    """`size` columns of `gates` gates; by default about four vectors make a panel."""
    per = per or max(1, 4 // gates)
    main = Part(gates, per, lanes)
    count, rest = divmod(size, main.columns)
    half = lanes.count // 2
    tail = None
    if half and rest and rest <= half:
        tail = Part(gates, 1, Lanes(lanes.element, half))
    elif rest:
        vectors = -(-rest // lanes.count)
        if vectors == per:
            count += 1
        else:
            tail = Part(gates, vectors, lanes)
    return Columns(Split(main, tail), size, count)


UNROLL = 2
"""Steps of k in one turn of the inner loop."""

LARGEST = 8
"""Rows of a tile at most: more would only be more code."""

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
"""Of a tile beside its rows; see `Tiles.product`."""

_PANELS = {"panels": "i64", "w_step": "i64", "init_step": "i64", "out_step": "i64"}
"""And from one panel to the next, where there are several."""


@dataclass(frozen=True)
class Part:
    """The shape of a panel: `gates` times `per` vectors of `lanes`, for each k.

    With `pairs`, a k stands for two neighbouring numbers in bfloat16, in the memory of one float:
    of a row of `a` as of a column. Products are summed in float32.
    """

    gates: int
    per: int
    lanes: Lanes
    pairs: bool = False

    @property
    def columns(self) -> int:
        """Of each gate."""
        return self.per * self.lanes.count

    @property
    def vectors(self) -> int:
        return self.gates * self.per

    @property
    def width(self) -> int:
        """Numbers for each k."""
        return self.gates * self.columns

    @property
    def name(self) -> str:
        return f"{self.gates}x{self.per}x{self.lanes.suffix}" + ("xbf16" if self.pairs else "")


def row_limit(machine: Machine, vectors: int) -> int:
    """Rows of a tile that still fits the registers, beside what a step of k holds there."""
    if numbers_first(machine, vectors):
        return (machine.registers - 1) // (vectors + 1)
    beside = vectors + (1 if machine.registers <= 16 else 2)
    return max(1, min(LARGEST, (machine.registers - beside) // vectors))


def numbers_first(machine: Machine, vectors: int) -> bool:
    """Whether a step holds a number of every row and one weight, not all weights and one number.

    Where there are few registers, a tile of many vectors has more rows so. What does not fit is
    kept in memory by the compiler, which takes more than half of the speed.
    """
    return machine.registers <= 16 and vectors > 3


class Tiles:
    """The inner products of one module, each emitted when it is first asked for.

    Parameters
    ----------
    machine
        Whose registers are to be filled.
    """

    def __init__(self, module: Module, machine: Machine) -> None:
        self.module, self.machine = module, machine
        self._tiles: dict[tuple[int, Part], Function] = {}
        self._products: dict[tuple[Part, bool], Function] = {}

    def rows(self, part: Part) -> int:
        """Rows of the largest tile."""
        return row_limit(self.machine, part.vectors)

    def product(self, part: Part) -> Function:
        """Any number of rows times one panel.

        out[r][gate][column] = init[gate][column] + sum over k of a[r][k] w[k][gate][column].
        Its parameters: `a`, addresses of the rows; `rows`; `w`, the panel; `K`, numbers of a row
        side by side, `times` of these, `skip` from one to the next; `init`; `out`, with `stride`
        from one row to the next and `apart` from one gate to the next.
        """
        return self._product(part, several=False)

    def products(self, part: Part) -> Function:
        """Any number of rows times several panels; good for few rows.

        Its parameters: those of `product`; how many `panels`; and `w_step`, `init_step` and
        `out_step` from what belongs to one panel to what belongs to the next.
        """
        return self._product(part, several=True)

    def _product(self, part: Part, *, several: bool) -> Function:
        if (part, several) not in self._products:
            self._products[part, several] = self._emit_product(part, several)
        return self._products[part, several]

    def _emit_product(self, part: Part, several: bool) -> Function:
        limit, element = self.rows(part), part.lanes.element
        # What is left over is made of these, for every height would be code to compile.
        lower = [rows for rows in (4, 2, 1) if rows < limit]
        kinds = dict(a="ptr", rows="i64", **_OPERANDS) | (_PANELS if several else {})
        f = self.module.function(f"product{'s' if several else ''}_{part.name}", kinds)
        a, rows, w, K, times, skip, init, out, stride, apart, *given = f.args.values()
        panels = given or [i64(1), i64(0), i64(0), i64(0)]

        def call(tile: Function, first: Value) -> None:
            begin = f.at(out, f.mul(first, stride), element)
            row = f.at(a, first, "ptr")
            f.call(tile, row, w, K, times, skip, init, begin, stride, apart, *panels)

        rest = f.rem(rows, limit)
        whole = f.sub(rows, rest)
        with f.loop(0, whole, limit) as first:
            call(self._tile(limit, part), first)
        done = f.variable("i64", whole)
        for count in lower:
            with f.when(f.compare("ne", f.binary("and", rest, count), 0)):
                call(self._tile(count, part), f.get(done))
                f.set(done, f.add(f.get(done), count))
        f.done()
        return f

    def _tile(self, rows: int, part: Part) -> Function:
        if (rows, part) not in self._tiles:
            self._tiles[rows, part] = self._emit_tile(rows, part)
        return self._tiles[rows, part]

    def _emit_tile(self, rows: int, part: Part) -> Function:
        kinds = dict(a="ptr", **_OPERANDS, **_PANELS)
        f = self.module.function(f"tile_{rows}_{part.name}", kinds)
        args, element = f.args, part.lanes.element
        with f.loop(0, args["panels"]) as p:
            w = f.at(args["w"], f.mul(p, args["w_step"]), element)
            init = f.at(args["init"], f.mul(p, args["init_step"]), element)
            out = f.at(args["out"], f.mul(p, args["out_step"]), element)
            self._emit_panel(f, rows, part, w, init, out)
        f.done()
        return f

    def _emit_panel(
        self, f: Function, rows: int, part: Part, weights: Value, init: Value, out: Value
    ) -> None:
        """The sums of one panel, from first to last."""
        lanes, element, K = part.lanes, part.lanes.element, f.args["K"]
        count = lanes.count
        sums = []
        for v in range(part.vectors):
            first = f.load(lanes.type, f.at(init, v * count, element), 4)
            sums.append([f.variable(lanes.type, first) for _ in range(rows)])

        def step(a: list[Value], w: Value, k: Value, offset: int) -> None:
            base = f.at(w, f.mul(k, part.width), element)
            places = [offset * part.width + v * count for v in range(part.vectors)]
            weights = [f.at(base, p, element) for p in places]
            numbers = [f.at(f.at(a[r], k, element), offset, element) for r in range(rows)]
            if not part.pairs:
                add_products(f, lanes, self.machine, weights, numbers, sums)
            elif self.machine.dot_bfloat16:
                _add_dot_products(f, lanes, weights, numbers, sums)
            else:
                for half in range(2):
                    add_products(f, lanes, self.machine, weights, numbers, sums, half)

        whole = f.mul(f.div(K, UNROLL), UNROLL)
        with f.loop(0, f.args["times"]) as turn:
            shift = f.mul(turn, f.args["skip"])
            starts = [f.load("ptr", f.at(f.args["a"], r, "ptr"), 8) for r in range(rows)]
            a = [f.at(start, shift, element) for start in starts]
            w = f.at(weights, f.mul(f.mul(turn, K), part.width), element)
            with f.loop(0, whole, UNROLL) as k:
                for offset in range(UNROLL):
                    step(a, w, k, offset)
            with f.loop(whole, K) as k:
                step(a, w, k, 0)
        for r in range(rows):
            row = f.at(out, f.mul(f.args["stride"], r), element)
            for v in range(part.vectors):
                gate, place = divmod(v, part.per)
                begin = f.at(row, f.mul(f.args["apart"], gate), element)
                f.store(f.get(sums[v][r]), f.at(begin, place * count, element), 4)


def add_products(
    f: Function,
    lanes: Lanes,
    machine: Machine,
    weights: Sequence[Value],
    numbers: Sequence[Value],
    sums: Sequence[Sequence[Variable]],
    half: int | None = None,
) -> None:
    """Add each vector at `weights` times each number at `numbers` to ``sums[weight][number]``.

    With `half`, both are pairs of bfloat16, whose first (0) or second number (1) is multiplied.
    """

    def wide(at: Value) -> Value:
        if half is None:
            return f.splat(f.load(lanes.element, at), lanes)
        return _half(f, f.splat(f.load("i32", at), Lanes("i32", lanes.count)), lanes, half)

    def vector_at(at: Value) -> Value:
        if half is None:
            return f.load(lanes.type, at, lanes.bytes)
        return _half(f, f.load(lanes.integers, at, lanes.bytes), lanes, half)

    def add(weight: Value, number: Value, total: Variable) -> None:
        f.set(total, fma(f, lanes, weight, number, f.get(total)))

    if numbers_first(machine, len(weights)):
        held = [wide(at) for at in numbers]
        for at, own in zip(weights, sums, strict=True):
            weight = vector_at(at)
            for number, total in zip(held, own, strict=True):
                add(weight, number, total)
    else:
        held = [vector_at(at) for at in weights]
        for r, at in enumerate(numbers):
            number = wide(at)
            for weight, own in zip(held, sums, strict=True):
                add(weight, number, own[r])


def halved(f: Function, lanes: Lanes, values: Value, machine: Machine) -> Value:
    """Numbers rounded to the nearest bfloat16, ties to even; NaN stays NaN.

    Where the machine has no instruction for it, LLVM would call a function that is in no library
    here, so the upper half is rounded as an integer.
    """
    if machine.dot_bfloat16:
        return f.convert("fptrunc", values, vector(lanes.count, "bfloat"))
    bits = f.convert("bitcast", values, lanes.integers)
    upper = f.binary("lshr", bits, lanes.integer(16))
    even = f.add(f.binary("and", upper, lanes.integer(1)), lanes.integer(0x7FFF))
    rounded = f.binary("lshr", f.binary("add", bits, even), lanes.integer(16))
    quiet = f.binary("or", upper, lanes.integer(0x40))
    chosen = f.select(f.fcompare("uno", values, values), quiet, rounded)
    return f.convert("trunc", chosen, vector(lanes.count, "i16"))


def _half(f: Function, pairs: Value, lanes: Lanes, half: int) -> Value:
    """The first or second number of pairs of bfloat16, as a float: the first has the lower bits."""
    operation, bits = ("shl", 16) if half == 0 else ("and", -65536)
    return f.convert("bitcast", f.binary(operation, pairs, lanes.integer(bits)), lanes.type)


def _add_dot_products(
    f: Function,
    lanes: Lanes,
    weights: Sequence[Value],
    numbers: Sequence[Value],
    sums: Sequence[Sequence[Variable]],
) -> None:
    """Add the two products of each pair of bfloat16 with one instruction."""
    kind = vector(2 * lanes.count, "bfloat")
    name = f"llvm.x86.avx512bf16.dpbf16ps.{lanes.bytes * 8}"
    held = [f.load(lanes.integers, at, lanes.bytes) for at in weights]
    for r, at in enumerate(numbers):
        wide = f.splat(f.load("i32", at), Lanes("i32", lanes.count))
        a = f.convert("bitcast", wide, kind)
        for weight, own in zip(held, sums, strict=True):
            w = f.convert("bitcast", weight, kind)
            f.set(own[r], f.intrinsic(name, lanes.type, f.get(own[r]), w, a))
