"""LLVM IR as text: functions whose methods append one instruction each.

llvmlite's own builder has no bfloat16, and takes longer than LLVM takes to read text. Values that
change are in stack slots (`Function.variable`), which LLVM's first pass turns into registers. So
emitters place no phi nodes.
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
"""A value, or a whole number that stands for an i64 constant."""


@dataclass(frozen=True, slots=True)
class VectorType:
    """A vector of `count` numbers of type `element`, one in each lane.

    Attributes
    ----------
    element
        ``float`` or ``double``.
    """

    element: str
    count: int

    @property
    def bits(self) -> int:
        """Bits of one number."""
        return 32 if self.element == "float" else 64

    @property
    def bytes(self) -> int:
        """Bytes of the vector."""
        return self.bits // 8 * self.count

    @property
    def type(self) -> str:
        return vector_text(self.count, self.element)

    @property
    def integers(self) -> str:
        """Type of a vector of integers, with as many numbers and bits."""
        return vector_text(self.count, f"i{self.bits}")

    @property
    def suffix(self) -> str:
        """Ending of intrinsics' names, such as ``v16f32``."""
        return f"v{self.count}f{self.bits}"

    def number(self, value: float) -> Value:
        """`value` in every lane."""
        return splat_constant(self.type, self.count, self.element, literal(value, self.element))

    def integer(self, value: int) -> Value:
        """The integer `value` in every lane."""
        return splat_constant(self.integers, self.count, f"i{self.bits}", str(value))


def vector_text(count: int, element: str) -> str:
    """Text of a vector type, such as ``<16 x float>``."""
    return f"<{count} x {element}>"


def splat_constant(type_: str, count: int, element: str, text: str) -> Value:
    """A constant with `text` in every lane."""
    return Value(type_, "<" + ", ".join([f"{element} {text}"] * count) + ">")


def literal(value: float, element: str) -> str:
    """Text of a number in LLVM's syntax: the bits of an equal double."""
    if element == "float":
        value = ctypes.c_float(value).value  # infinite if it is too large
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def i64(value: Operand) -> Value:
    """An i64 constant for a whole number; a value unchanged."""
    return value if isinstance(value, Value) else Value("i64", str(value))


class Module:
    """Functions that are compiled and linked together."""

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
        """Add a function without instructions; `parameters` are types by name.

        Pass ``noalias=False`` if other threads may write to the pointers' memory during a call.
        """
        function = Function(self, name, parameters, returns, exported, noalias)
        self._functions.append(function)
        return function

    def declare(self, name: str, returns: str, arguments: Sequence[str]) -> None:
        """Declare an intrinsic."""
        self._declared[name] = f"declare {returns} @{name}({', '.join(arguments)})"

    @property
    def exported(self) -> tuple[str, ...]:
        """Names of the functions that other code can call."""
        return tuple(f.name for f in self._functions if f.exported)

    def __str__(self) -> str:
        parts = [*self._declared.values(), *map(str, self._functions)]
        return "\n\n".join(parts) + "\n"


@dataclass(frozen=True, slots=True)
class StackSlot:
    """Memory on the stack for a value that changes."""

    type: str
    address: Value


class Function:
    """A function, and the methods that append instructions to it.

    Attributes
    ----------
    args
        Values of the parameters by name.
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
        # noalias: the memory that a call writes through one pointer is used through no other one.
        parameters = ", ".join(
            f"ptr noalias %{k}" if v.type == "ptr" and self.noalias else str(v)
            for k, v in self.args.items()
        )
        body = "\n".join(["entry:", *self._slots, "  br label %start", "start:", *self._lines])
        attributes = "nounwind" if self.exported else "nounwind noinline"
        return f"{head} {self.returns} @{self.name}({parameters}) {attributes} {{\n{body}\n}}"

    # Instructions

    def line(self, text: str) -> None:
        """Append an instruction without a result."""
        self._lines.append("  " + text)

    def value(self, type_: str, text: str) -> Value:
        """Append an instruction with a result of type `type_`."""
        name = self._fresh("v")
        self._lines.append(f"  %{name} = {text}")
        return Value(type_, f"%{name}")

    def binary(self, op: str, a: Operand, b: Operand) -> Value:
        """Append an instruction on two operands of the result's type."""
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
        """Quotient of whole numbers, rounded towards zero."""
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

    def compare(self, predicate: str, a: Operand, b: Operand) -> Value:
        """Compare integers: ``eq``, ``ne``, ``slt``, ``sle``, ``sgt`` or ``sge``."""
        a, b = i64(a), i64(b)
        return self.value("i1", f"icmp {predicate} {a}, {b.name}")

    def fcompare(self, predicate: str, a: Value, b: Value) -> Value:
        """Compare vectors: ``olt``, ``ole``, ``ogt``, ...; false in lanes with a NaN."""
        count = a.type.split()[0].lstrip("<")
        return self.value(vector_text(int(count), "i1"), f"fcmp {predicate} {a}, {b.name}")

    def select(self, condition: Value, yes: Operand, no: Operand) -> Value:
        yes, no = i64(yes), i64(no)
        return self.value(yes.type, f"select {condition}, {yes}, {no}")

    def minimum(self, a: Operand, b: Operand) -> Value:
        """The smaller whole number."""
        return self.select(self.compare("slt", a, b), a, b)

    def maximum(self, a: Operand, b: Operand) -> Value:
        """The larger whole number."""
        return self.select(self.compare("sgt", a, b), a, b)

    def convert(self, op: str, a: Value, type_: str) -> Value:
        """Convert to a type by ``bitcast``, ``fpext``, ``zext``, ``sitofp``, ..."""
        return self.value(type_, f"{op} {a} to {type_}")

    def intrinsic(self, name: str, returns: str, *arguments: Value) -> Value:
        """Call and declare one of LLVM's own functions."""
        self.module.declare(name, returns, [a.type for a in arguments])
        text = f"call {returns} @{name}({', '.join(map(str, arguments))})"
        if returns == "void":
            self.line(text)
            return Value("void", "")
        return self.value(returns, text)

    def call(self, function: Function, *arguments: Operand) -> Value:
        """Call another function of the module."""
        operands = ", ".join(str(i64(a)) for a in arguments)
        text = f"call {function.returns} @{function.name}({operands})"
        if function.returns == "void":
            self.line(text)
            return Value("void", "")
        return self.value(function.returns, text)

    # Memory

    def at(self, base: Value, index: Operand, type_: str) -> Value:
        """Address of element `index` of an array of `type_` at `base`."""
        return self.value("ptr", f"getelementptr {type_}, {base}, {i64(index)}")

    def load(self, type_: str, address: Value, align: int | None = None) -> Value:
        return self.value(type_, f"load {type_}, {address}" + _aligned(align))

    def store(self, value: Operand, address: Value, align: int | None = None) -> None:
        self.line(f"store {i64(value)}, {address}" + _aligned(align))

    def variable(self, type_: str, initial: Operand | None = None) -> StackSlot:
        """A stack slot for a value that changes."""
        name = self._fresh("s")
        self._slots.append(f"  %{name} = alloca {type_}")
        slot = StackSlot(type_, Value("ptr", f"%{name}"))
        if initial is not None:
            self.set(slot, initial)
        return slot

    def get(self, variable: StackSlot) -> Value:
        return self.load(variable.type, variable.address)

    def set(self, variable: StackSlot, value: Operand) -> None:
        self.store(value, variable.address)

    def array(self, count: int, type_: str, align: int = 64) -> Value:
        """Address of an array on the stack."""
        name = self._fresh("a")
        self._slots.append(f"  %{name} = alloca [{count} x {type_}], align {align}")
        return Value("ptr", f"%{name}")

    def splat(self, scalar: Value, vector: VectorType) -> Value:
        """A number in every lane."""
        type_ = vector.type
        single = self.value(type_, f"insertelement {type_} poison, {scalar}, i64 0")
        zeros = vector_text(vector.count, "i32")
        return self.value(type_, f"shufflevector {single}, {type_} poison, {zeros} zeroinitializer")

    # Control

    @contextmanager
    def loop(self, start: Operand, stop: Operand, step: Operand = 1) -> Iterator[Value]:
        """Loop over an index from `start`, while it is below `stop`."""
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
    def while_(self) -> Iterator[WhileLoop]:
        """Loop until `WhileLoop.leave_if`."""
        k = self._fresh("w")
        self._lines += [f"  br label %{k}.body", f"{k}.body:"]
        yield WhileLoop(self, k)
        self._lines += [f"  br label %{k}.body", f"{k}.end:"]

    @contextmanager
    def when(self, condition: Value) -> Iterator[None]:
        """Run the code inside if `condition` holds."""
        k = self._fresh("c")
        self._lines += [f"  br {condition}, label %{k}.yes, label %{k}.end", f"{k}.yes:"]
        yield
        self._lines += [f"  br label %{k}.end", f"{k}.end:"]

    @contextmanager
    def switch(self, value: Value, cases: Sequence[int]) -> Iterator[Mapping[int, SwitchCase]]:
        """Run the case of a whole number; no code runs if `cases` lacks the number."""
        k = self._fresh("k")
        arms = " ".join(f"i64 {n}, label %{k}.is{n}" for n in cases)
        self.line(f"switch {value}, label %{k}.end [ {arms} ]")
        yield {n: SwitchCase(self, f"{k}.is{n}", f"{k}.end") for n in cases}
        self._lines.append(f"{k}.end:")

    def ret(self, value: Operand | None = None) -> None:
        """Return from the function."""
        self.line("ret void" if value is None else f"ret {i64(value)}")

    def label(self, name: str) -> None:
        """Start a basic block."""
        self._lines.append(f"{name}:")

    def _fresh(self, kind: str) -> str:
        self._count += 1
        return f"{kind}{self._count}"


@dataclass(frozen=True)
class WhileLoop:
    """A loop without a condition; code inside leaves it."""

    function: Function
    name: str

    def leave_if(self, condition: Value) -> None:
        """Leave the loop if `condition` holds."""
        go = self.function._fresh("g")
        self.function.line(f"br {condition}, label %{self.name}.end, label %{go}")
        self.function.label(go)


@dataclass(frozen=True)
class SwitchCase:
    """One case of a switch: a context for its instructions."""

    function: Function
    begin: str
    end: str

    def __enter__(self) -> None:
        self.function.label(self.begin)

    def __exit__(self, *_: object) -> None:
        self.function.line(f"br label %{self.end}")


def _aligned(align: int | None) -> str:
    return "" if align is None else f", align {align}"


def fma(f: Function, vector: VectorType, a: Value, b: Value, c: Value) -> Value:
    """The fused multiply-add a b + c, rounded once."""
    return f.intrinsic(f"llvm.fma.{vector.suffix}", vector.type, a, b, c)


def store_first(f: Function, vector: VectorType, value: Value, at: Value, count: Value) -> None:
    """Store the first `count` numbers of a vector, or all if `count` is not less."""
    whole = f.compare("sge", count, vector.count)
    with f.when(whole):
        f.store(value, at, 4)
    with f.when(f.value("i1", f"xor {whole}, true")):
        mask = lane_mask(f, vector, count)
        name = f"llvm.masked.store.{vector.suffix}.p0"
        f.intrinsic(name, "void", value, at, Value("i32", str(vector.bits // 8)), mask)


def load_masked(f: Function, vector: VectorType, at: Value, mask: Value) -> Value:
    """Load the numbers of the lanes in `mask`; the others are 0, and their memory is not read."""
    name, align = f"llvm.masked.load.{vector.suffix}.p0", Value("i32", str(vector.bits // 8))
    return f.intrinsic(name, vector.type, at, align, mask, vector.number(0.0))


def lane_mask(f: Function, vector: VectorType, count: Value) -> Value:
    """Mask of the first `count` lanes; `count` may be negative, or larger than the vector."""
    kind = f"i{vector.bits}"
    limit = count if kind == "i64" else f.convert("trunc", count, kind)
    wide = f.splat(limit, VectorType(kind, vector.count))
    order = ", ".join(f"{kind} {k}" for k in range(vector.count))
    return f.value(
        vector_text(vector.count, "i1"), f"icmp slt {vector.integers} <{order}>, {wide.name}"
    )
