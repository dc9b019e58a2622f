"""LLVM IR as text: what the kernels are written with.

Text rather than llvmlite's builder, for that one has no bfloat16, and is slower than LLVM is at
reading. Values that change live in stack slots (`Function.variable`), which LLVM's first pass
turns into registers; so no code here has to place phi nodes.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Value:
    """A typed operand: ``i64 %7``, ``<16 x float> %9``, or a constant."""

    type: str
    name: str

    def __str__(self) -> str:
        return f"{self.type} {self.name}"


Operand: TypeAlias = Value | int
"""A value, or a whole number that is meant as i64."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """What a kernel computes in: `count` numbers of type `element` at once.

    Attributes
    ----------
    element
        ``float`` or ``double``.
    """

    element: str
    count: int

    @property
    def bits(self) -> int:
        """Of one number."""
        return 32 if self.element == "float" else 64

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return self.bits // 8 * self.count

    @property
    def type(self) -> str:
        return vector(self.count, self.element)

    @property
    def integers(self) -> str:
        """The vector of whole numbers with the same bits."""
        return vector(self.count, f"i{self.bits}")

    @property
    def suffix(self) -> str:
        """As names of intrinsics end: ``v16f32``."""
        return f"v{self.count}f{self.bits}"

    def number(self, value: float) -> Value:
        """`value` in every lane."""
        return splatted(self.type, self.count, self.element, literal(value, self.element))

    def integer(self, value: int) -> Value:
        """The whole number `value` in every lane."""
        return splatted(self.integers, self.count, f"i{self.bits}", str(value))


def vector(count: int, element: str) -> str:
    """``<16 x float>``."""
    return f"<{count} x {element}>"


def splatted(type_: str, count: int, element: str, text: str) -> Value:
    """A constant in every lane."""
    return Value(type_, "<" + ", ".join([f"{element} {text}"] * count) + ">")


def literal(value: float, element: str) -> str:
    """A number as LLVM reads it: the bits of the double it is."""
    if element == "float":
        value = ctypes.c_float(value).value  # infinite where it is too large
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def i64(value: Operand) -> Value:
    """A whole number as an operand; a value as it is."""
    return value if isinstance(value, Value) else Value("i64", str(value))


def i32(value: int) -> Value:
    """A whole number of 32 bits."""
    return Value("i32", str(value))


def null() -> Value:
    """No address."""
    return Value("ptr", "null")


class Module:
    """Functions that are compiled together."""

    def __init__(self) -> None:
        self._functions: list[Function] = []
        self._declared: dict[str, str] = {}

    def function(
        self,
        name: str,
        parameters: Mapping[str, str],
        *,
        returns: str = "void",
        exported: bool = False,
        noalias: bool = True,
    ) -> Function:
        """A function to be filled; `parameters` are types by name.

        Without `noalias`, other threads may write to where its pointers lead while it runs.
        """
        made = Function(self, name, parameters, returns, exported, noalias)
        self._functions.append(made)
        return made

    def declare(self, name: str, returns: str, arguments: Sequence[str]) -> None:
        """Make an intrinsic known."""
        self._declared[name] = f"declare {returns} @{name}({', '.join(arguments)})"

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of the functions that can be called from outside."""
        return tuple(f.name for f in self._functions if f.exported)

    def __str__(self) -> str:
        parts = [*self._declared.values(), *map(str, self._functions)]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class Variable:
    """A stack slot."""

    type: str
    address: Value


class Function:
    """A function, and the methods that append instructions to it.

    Attributes
    ----------
    args
        Its parameters by name.
    """

    def __init__(
        self,
        module: Module,
        name: str,
        parameters: Mapping[str, str],
        returns: str,
        exported: bool,
        noalias: bool = True,
    ) -> None:
        self.noalias = noalias
        self.module, self.name, self.returns, self.exported = module, name, returns, exported
        self.args = {key: Value(type_, f"%{key}") for key, type_ in parameters.items()}
        self._slots: list[str] = []
        self._lines: list[str] = []
        self._count = 0

    def __str__(self) -> str:
        head = "define" if self.exported else "define internal"
        # Pointers of one call never overlap where one of them is written through.
        given = ", ".join(
            f"ptr noalias %{k}" if v.type == "ptr" and self.noalias else str(v)
            for k, v in self.args.items()
        )
        body = "\n".join(["entry:", *self._slots, "  br label %start", "start:", *self._lines])
        attributes = "nounwind" if self.exported else "nounwind noinline"
        return f"{head} {self.returns} @{self.name}({given}) {attributes} {{\n{body}\n}}"

    # Instructions

    def line(self, text: str) -> None:
        """An instruction without a result."""
        self._lines.append("  " + text)

    def value(self, type_: str, text: str) -> Value:
        """An instruction with a result of that type."""
        name = self._fresh("v")
        self._lines.append(f"  %{name} = {text}")
        return Value(type_, f"%{name}")

    def binary(self, op: str, a: Operand, b: Operand) -> Value:
        """Two operands of one type, which is the result's."""
        a, b = i64(a), i64(b)
        return self.value(a.type, f"{op} {a}, {b.name}")

    def add(self, a: Operand, b: Operand) -> Value:
        if isinstance(a, int) and isinstance(b, int):
            return i64(a + b)
        return self.binary("add nsw", a, b)

    def sub(self, a: Operand, b: Operand) -> Value:
        return self.binary("sub nsw", a, b)

    def mul(self, a: Operand, b: Operand) -> Value:
        if isinstance(a, int) and isinstance(b, int):
            return i64(a * b)
        return self.binary("mul nsw", a, b)

    def div(self, a: Operand, b: Operand) -> Value:
        """Whole numbers, rounded towards zero."""
        return self.binary("sdiv", a, b)

    def rem(self, a: Operand, b: Operand) -> Value:
        return self.binary("srem", a, b)

    def fadd(self, a: Value, b: Value) -> Value:
        return self.binary("fadd", a, b)

    def fsub(self, a: Value, b: Value) -> Value:
        return self.binary("fsub", a, b)

    def fmul(self, a: Value, b: Value) -> Value:
        return self.binary("fmul", a, b)

    def fdiv(self, a: Value, b: Value) -> Value:
        return self.binary("fdiv", a, b)

    def fneg(self, a: Value) -> Value:
        return self.value(a.type, f"fneg {a}")

    def compare(self, how: str, a: Operand, b: Operand) -> Value:
        """``eq``, ``ne``, ``slt``, ``sle``, ``sgt``, ``sge`` of whole numbers."""
        a, b = i64(a), i64(b)
        return self.value("i1", f"icmp {how} {a}, {b.name}")

    def fcompare(self, how: str, a: Value, b: Value) -> Value:
        """``olt``, ``ole``, ``ogt``, ... of vectors, false where either is NaN."""
        count = a.type.split()[0].lstrip("<")
        return self.value(vector(int(count), "i1"), f"fcmp {how} {a}, {b.name}")

    def select(self, condition: Value, yes: Operand, no: Operand) -> Value:
        yes, no = i64(yes), i64(no)
        return self.value(yes.type, f"select {condition}, {yes}, {no}")

    def smaller(self, a: Operand, b: Operand) -> Value:
        """The smaller whole number."""
        return self.select(self.compare("slt", a, b), a, b)

    def larger(self, a: Operand, b: Operand) -> Value:
        """The larger whole number."""
        return self.select(self.compare("sgt", a, b), a, b)

    def convert(self, op: str, a: Value, type_: str) -> Value:
        """``bitcast``, ``fpext``, ``zext``, ``sitofp``, ..."""
        return self.value(type_, f"{op} {a} to {type_}")

    def intrinsic(self, name: str, returns: str, *arguments: Value) -> Value:
        """A call of LLVM's own function; declared as it is used."""
        self.module.declare(name, returns, [a.type for a in arguments])
        text = f"call {returns} @{name}({', '.join(map(str, arguments))})"
        if returns == "void":
            self.line(text)
            return Value("void", "")
        return self.value(returns, text)

    def call(self, function: Function, *arguments: Operand) -> Value:
        """A call of another function of the module."""
        given = ", ".join(str(i64(a)) for a in arguments)
        text = f"call {function.returns} @{function.name}({given})"
        if function.returns == "void":
            self.line(text)
            return Value("void", "")
        return self.value(function.returns, text)

    # Memory

    def at(self, base: Value, index: Operand, type_: str) -> Value:
        """The address of element `index` of an array of `type_` at `base`."""
        return self.value("ptr", f"getelementptr {type_}, {base}, {i64(index)}")

    def load(self, type_: str, address: Value, align: int | None = None) -> Value:
        return self.value(type_, f"load {type_}, {address}" + _aligned(align))

    def store(self, value: Operand, address: Value, align: int | None = None) -> None:
        self.line(f"store {i64(value)}, {address}" + _aligned(align))

    def variable(self, type_: str, initial: Operand | None = None) -> Variable:
        """A slot for a value that changes."""
        name = self._fresh("s")
        self._slots.append(f"  %{name} = alloca {type_}")
        made = Variable(type_, Value("ptr", f"%{name}"))
        if initial is not None:
            self.set(made, initial)
        return made

    def get(self, variable: Variable) -> Value:
        return self.load(variable.type, variable.address)

    def set(self, variable: Variable, value: Operand) -> None:
        self.store(value, variable.address)

    def array(self, count: int, type_: str, align: int = 64) -> Value:
        """The address of an array on the stack."""
        name = self._fresh("a")
        self._slots.append(f"  %{name} = alloca [{count} x {type_}], align {align}")
        return Value("ptr", f"%{name}")

    def splat(self, scalar: Value, lanes: Lanes) -> Value:
        """A number in every lane."""
        type_ = lanes.type
        one = self.value(type_, f"insertelement {type_} poison, {scalar}, i64 0")
        zeros = vector(lanes.count, "i32")
        return self.value(type_, f"shufflevector {one}, {type_} poison, {zeros} zeroinitializer")

    # Control

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Value]:
        """For index from `start` while it is below `stop`."""
        k = self._fresh("l")
        index = Value("i64", f"%{k}.i")
        self._lines += [f"  br label %{k}.before", f"{k}.before:", f"  br label %{k}.head"]
        self._lines += [f"{k}.head:"]
        first = f"[ {i64(start).name}, %{k}.before ]"
        self.line(f"{index.name} = phi i64 {first}, [ %{k}.next, %{k}.latch ]")
        self.line(f"%{k}.go = icmp slt {index}, {i64(stop).name}")
        self._lines += [f"  br i1 %{k}.go, label %{k}.body, label %{k}.end", f"{k}.body:"]
        yield index
        self._lines += [f"  br label %{k}.latch", f"{k}.latch:"]
        self.line(f"%{k}.next = add nsw {index}, {i64(step).name}")
        self._lines += [f"  br label %{k}.head", f"{k}.end:"]

    @contextmanager
    def while_(self) -> Iterator[Loop]:
        """Until `Loop.leave_if`."""
        k = self._fresh("w")
        self._lines += [f"  br label %{k}.body", f"{k}.body:"]
        yield Loop(self, k)
        self._lines += [f"  br label %{k}.body", f"{k}.end:"]

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Where `condition` holds."""
        k = self._fresh("c")
        self._lines += [f"  br {condition}, label %{k}.yes, label %{k}.end", f"{k}.yes:"]
        yield
        self._lines += [f"  br label %{k}.end", f"{k}.end:"]

    @contextmanager
    def switch(self, value: Value, cases: Sequence[int]) -> Iterator[Mapping[int, Case]]:
        """One of several parts, chosen by a whole number; none if no case has it."""
        k = self._fresh("k")
        arms = " ".join(f"i64 {n}, label %{k}.is{n}" for n in cases)
        self.line(f"switch {value}, label %{k}.end [ {arms} ]")
        yield {n: Case(self, f"{k}.is{n}", f"{k}.end") for n in cases}
        self._lines.append(f"{k}.end:")

    def done(self, value: Operand | None = None) -> None:
        """Return."""
        self.line("ret void" if value is None else f"ret {i64(value)}")

    def label(self, name: str) -> None:
        """Begin a block that something jumps to."""
        self._lines.append(f"{name}:")

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"


@dataclass(frozen=True)
class Loop:
    """A loop that ends from within."""

    function: Function
    name: str

    def leave_if(self, condition: Value) -> None:
        """Go on behind the loop where `condition` holds."""
        go = self.function._fresh("g")
        self.function.line(f"br {condition}, label %{self.name}.end, label %{go}")
        self.function.label(go)


@dataclass(frozen=True)
class Case:
    """One arm of a switch; a context in which its instructions are written."""

    function: Function
    begin: str
    end: str

    def __enter__(self) -> None:
        self.function.label(self.begin)

    def __exit__(self, *_: object) -> None:
        self.function.line(f"br label %{self.end}")


def _aligned(align: int | None) -> str:
    return "" if align is None else f", align {align}"


def fma(f: Function, lanes: Lanes, a: Value, b: Value, c: Value) -> Value:
    """a b + c, rounded once."""
    return f.intrinsic(f"llvm.fma.{lanes.suffix}", lanes.type, a, b, c)


def store_part(f: Function, lanes: Lanes, value: Value, at: Value, count: Value) -> None:
    """Store the first `count` numbers of a vector, all of them if it has no more."""
    whole = f.compare("sge", count, lanes.count)
    with f.when(whole):
        f.store(value, at, 4)
    with f.when(f.value("i1", f"xor {whole}, true")):
        mask = first_lanes(f, lanes, count)
        name = f"llvm.masked.store.{lanes.suffix}.p0"
        f.intrinsic(name, "void", value, at, Value("i32", str(lanes.bits // 8)), mask)


def load_part(f: Function, lanes: Lanes, at: Value, mask: Value) -> Value:
    """The numbers of a vector that `mask` has, 0 in the other lanes; nothing else is touched."""
    name, align = f"llvm.masked.load.{lanes.suffix}.p0", Value("i32", str(lanes.bits // 8))
    return f.intrinsic(name, lanes.type, at, align, mask, lanes.number(0.0))


def first_lanes(f: Function, lanes: Lanes, count: Value) -> Value:
    """A mask that has the first `count` lanes; `count` may be less than none or more than all."""
    kind = f"i{lanes.bits}"
    limit = count if kind == "i64" else f.convert("trunc", count, kind)
    wide = f.splat(limit, Lanes(kind, lanes.count))
    order = ", ".join(f"{kind} {k}" for k in range(lanes.count))
    return f.value(vector(lanes.count, "i1"), f"icmp slt {lanes.integers} <{order}>, {wide.name}")
