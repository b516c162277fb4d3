"""Loads and stores for compiled kernels: scalars, vectors, rows gathered and transposed, what threads share.

Kernels work on *addresses* (int64). Array indexing in numba would test for negative indices and for overlapping arrays,
which keeps its loops from being vectorised at all.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tombola.engines.sparse.llvm import F32, F64, I8, I32, I64, Vector, ask_for_line, literal, pointer, shuffle, splat


def _scalar_load(kind: Any, llvm: ir.Type, widen: ir.Type | None = None) -> Any:
    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            value = builder.load(pointer(builder, args[0], llvm))
            value.align = llvm.width // 8 if isinstance(llvm, ir.IntType) else (4 if llvm == F32 else 8)
            return value if widen is None else builder.sext(value, widen)

        return kind(types.int64), codegen

    return load


load_f32 = _scalar_load(types.float32, F32)
load_f64 = _scalar_load(types.float64, F64)
load_i64 = _scalar_load(types.int64, I64)
load_i32 = _scalar_load(types.int64, I32, I64)
"""A signed 32-bit index, widened."""


def _scalar_store(kind: Any, llvm: ir.Type) -> Any:
    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            builder.store(args[1], pointer(builder, args[0], llvm))
            return context.get_dummy_value()

        return types.void(types.int64, kind), codegen

    return store


store_f32 = _scalar_store(types.float32, F32)
store_f64 = _scalar_store(types.float64, F64)
store_i64 = _scalar_store(types.int64, I64)


@intrinsic(prefer_literal=True)
def fields(typingctx: Any, address: Any, count: Any) -> Any:
    """The first ``count`` int64 at an address, as a tuple: how a kernel reads its arguments."""
    number = literal(count)
    if number is None:
        return None
    result = types.UniTuple(types.int64, number)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        base = pointer(builder, args[0], I64)
        values = [builder.load(builder.gep(base, [ir.Constant(I64, i)])) for i in range(number)]
        return context.make_tuple(builder, result, values)

    return result(types.int64, count), codegen


@intrinsic
def call(typingctx: Any, function: Any, args: Any, frame: Any, thread: Any, threads: Any) -> Any:
    """Call the compiled kernel at an address with ``(args, frame, thread, threads)``."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [I64] * 4)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address; harmless wherever it points."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        ask_for_line(builder, args[0], 0)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic(prefer_literal=True)
def zeros(typingctx: Any, lanes: Any) -> Any:
    """A vector of zeros: ``zeros(64)``."""
    number = literal(lanes)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(F32, number), None)

    return Vector(number)(lanes), codegen


@intrinsic(prefer_literal=True)
def broadcast(typingctx: Any, value: Any, lanes: Any) -> Any:
    """One float32 in all lanes."""
    number = literal(lanes)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return splat(builder, args[0], number)

    return Vector(number)(types.float32, lanes), codegen


@intrinsic(prefer_literal=True)
def load(typingctx: Any, address: Any, lanes: Any) -> Any:
    """Consecutive float32 from a float-aligned address."""
    number = literal(lanes)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = builder.load(pointer(builder, args[0], ir.VectorType(F32, number)))
        value.align = 4
        return value

    return Vector(number)(types.int64, lanes), codegen


@intrinsic
def store(typingctx: Any, address: Any, vector: Any) -> Any:
    """Write a vector to consecutive float32 at a float-aligned address."""
    if not isinstance(vector, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        written = builder.store(args[1], pointer(builder, args[0], args[1].type))
        written.align = 4
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


def _gathered(name: str, llvm: ir.Type, to_float: bool) -> Any:
    """16 rows at places given by 16 indices, 16 elements of each, transposed: 16 vectors of one element each."""
    vector = ir.VectorType(llvm, 16)
    result = types.UniTuple(Vector(16), 16)

    @intrinsic
    def gather(typingctx: Any, rows: Any, pitch: Any, indices: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            lines = []
            for index in cgutils.unpack_tuple(builder, args[2], 16):
                address = builder.add(args[0], builder.mul(index, args[1]))
                line = builder.load(pointer(builder, address, vector))
                line.align = 1 if to_float else 4
                lines.append(line)
            lines = _transposed(builder, lines)
            if to_float:
                lines = [builder.uitofp(line, ir.VectorType(F32, 16)) for line in lines]
            return context.make_tuple(builder, result, lines)

        return result(types.int64, types.int64, types.UniTuple(types.int64, 16)), codegen

    gather.__name__ = name
    return gather


def _transposed(builder: ir.IRBuilder, lines: list[Any]) -> list[Any]:
    """16 vectors of 16 elements as a matrix, transposed by interleaving line i with line i + 8, four times over."""
    low = [j // 2 + 16 * (j % 2) for j in range(16)]
    high = [8 + j for j in low]
    for _ in range(4):
        pairs = [(lines[i], lines[i + 8]) for i in range(8)]
        lines = [shuffle(builder, a, b, order) for a, b in pairs for order in (low, high)]
    return lines


gather_bytes = _gathered("gather_bytes", I8, to_float=True)
gather_floats = _gathered("gather_floats", F32, to_float=False)


@intrinsic
def add_atomically(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to an int64 that other threads change too; what was there before."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", pointer(builder, args[0], I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_atomically(typingctx: Any, address: Any) -> Any:
    """Read an int64 that other threads change; nothing read later is read before it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load_atomic(pointer(builder, args[0], I64), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic(prefer_literal=True)
def stack_room(typingctx: Any, floats: Any) -> Any:
    """Address of room for ``floats`` float32 on the stack, the same at every turn of a loop; it begins undefined."""
    number = literal(floats)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(F32, number))
        room.align = 64
        return builder.ptrtoint(room, I64)

    return types.int64(floats), codegen


@intrinsic
def transpose(typingctx: Any, address: Any) -> Any:
    """Transpose a matrix of 16 rows of 16 float32, one after the other from ``address``, in place."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = [builder.add(args[0], ir.Constant(I64, 64 * i)) for i in range(16)]
        places = [pointer(builder, row, ir.VectorType(F32, 16)) for row in rows]
        lines = [builder.load(place, align=4) for place in places]
        for line, place in zip(_transposed(builder, lines), places, strict=True):
            builder.store(line, place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64), codegen
