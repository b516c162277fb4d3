"""Vectors of 16 at several addresses at once: the pixels of a tile of a convolution, wherever they lie."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tombola.engines.sparse.llvm import (
    F32,
    I1,
    I32,
    I64,
    Vector,
    ask_for_line,
    call_named,
    gated,
    literal,
    pointer,
    splat,
)


def _are_addresses(kind: Any) -> bool:
    return isinstance(kind, types.UniTuple) and kind.dtype == types.int64


def _load_16(builder: ir.IRBuilder, place: Any, offset: Any) -> Any:
    value = builder.load(pointer(builder, builder.add(place, offset), ir.VectorType(F32, 16)))
    value.align = 4
    return value


@intrinsic
def load_at(typingctx: Any, places: Any, offset: Any) -> Any:
    """16 float32 from each of a tuple of addresses, all moved by an offset."""
    if not _are_addresses(places):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = [_load_16(builder, p, args[1]) for p in cgutils.unpack_tuple(builder, args[0], places.count)]
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(Vector(16), places.count)(places, types.int64), codegen


def _storing_at(streaming: bool) -> Any:
    @intrinsic
    def store(typingctx: Any, places: Any, offset: Any, vectors: Any) -> Any:
        if not (_are_addresses(places) and isinstance(vectors, types.UniTuple) and vectors.count == places.count):
            return None

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            into, values = (cgutils.unpack_tuple(builder, a, places.count) for a in (args[0], args[2]))
            for place, value in zip(into, values, strict=True):
                written = builder.store(value, pointer(builder, builder.add(place, args[1]), value.type))
                written.align = 64 if streaming else 4
                if streaming:
                    written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(I32, 1)]))
            return context.get_dummy_value()

        return types.void(places, types.int64, vectors), codegen

    return store


store_at = _storing_at(streaming=False)
"""The opposite of ``load_at``."""
stream_at = _storing_at(streaming=True)
"""``store_at`` past the caches, to addresses that are multiples of 64; other threads see it after a ``fence``."""


@intrinsic
def fence(typingctx: Any) -> Any:
    """Everything written so far is visible to other threads before anything that is written later."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def fma_at(typingctx: Any, value: Any, places: Any, offset: Any, sums: Any) -> Any:
    """To each of a tuple of sums ``value`` times the 16 float32 at its address: one instruction each."""
    if not (_are_addresses(places) and isinstance(sums, types.UniTuple) and sums.count == places.count):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        factor = splat(builder, args[0], 16)
        where, before = (cgutils.unpack_tuple(builder, a, places.count) for a in (args[1], args[3]))
        after = [
            call_named(builder, "llvm.fma.v16f32", b.type, [factor, _load_16(builder, p, args[2]), b])
            for p, b in zip(where, before, strict=True)
        ]
        return context.make_tuple(builder, sums, after)

    return sums(types.float32, places, types.int64, sums), codegen


@intrinsic
def dot_at(typingctx: Any, vectors: Any, places: Any, offset: Any, total: Any) -> Any:
    """``total`` plus, one after the other, each of a tuple of vectors times the 16 float32 at its address."""
    if not (_are_addresses(places) and isinstance(vectors, types.UniTuple) and vectors.count == places.count):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        factors, where = (cgutils.unpack_tuple(builder, a, places.count) for a in (args[0], args[1]))
        value = args[3]
        for factor, place in zip(factors, where, strict=True):
            value = call_named(
                builder, "llvm.fma.v16f32", value.type, [factor, _load_16(builder, place, args[2]), value]
            )
        return value

    return total(vectors, places, types.int64, total), codegen


def _on_each(emit: Callable[[ir.IRBuilder, Any, Any], Any]) -> Any:
    @intrinsic
    def apply(typingctx: Any, a: Any, b: Any) -> Any:
        if not (isinstance(a, types.UniTuple) and a == b):
            return None

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            pairs = zip(*(cgutils.unpack_tuple(builder, v, a.count) for v in args), strict=True)
            return context.make_tuple(builder, a, [emit(builder, p, q) for p, q in pairs])

        return a(a, b), codegen

    return apply


add_each = _on_each(lambda builder, a, b: builder.fadd(a, b))
gate_each = _on_each(gated)
"""``where_positive(a, b)`` element by element; with a tuple twice, its ReLU."""


@intrinsic
def sum_of(typingctx: Any, vectors: Any) -> Any:
    """The sum of a tuple of vectors, halved again and again."""
    if not (isinstance(vectors, types.UniTuple) and vectors.count & (vectors.count - 1) == 0):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _added(builder, cgutils.unpack_tuple(builder, args[0], vectors.count))

    return vectors.dtype(vectors), codegen


@intrinsic
def squares_about(typingctx: Any, vectors: Any, centre: Any) -> Any:
    """The squares of a tuple of vectors' distances from ``centre``, added as ``sum_of`` does."""
    if not (isinstance(vectors, types.UniTuple) and vectors.count & (vectors.count - 1) == 0):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        middle = splat(builder, args[1], vectors.dtype.lanes)
        off = [builder.fsub(v, middle) for v in cgutils.unpack_tuple(builder, args[0], vectors.count)]
        half = len(off) // 2
        squares = [
            call_named(builder, "llvm.fma.v16f32", p.type, [p, p, builder.fmul(q, q)])
            for p, q in zip(off[:half], off[half:], strict=True)
        ]
        return _added(builder, squares)

    return vectors.dtype(vectors, types.float32), codegen


def _added(builder: ir.IRBuilder, vectors: list[Any]) -> Any:
    while len(vectors) > 1:
        half = len(vectors) // 2
        vectors = [builder.fadd(p, q) for p, q in zip(vectors[:half], vectors[half:], strict=True)]
    return vectors[0]


@intrinsic(prefer_literal=True)
def each(typingctx: Any, value: Any, count: Any) -> Any:
    """One float32 in all lanes of a tuple of vectors of 16."""
    number = literal(count)
    if number is None:
        return None
    result = types.UniTuple(Vector(16), number)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return context.make_tuple(builder, result, [splat(builder, args[0], 16)] * number)

    return result(types.float32, count), codegen


@intrinsic
def load_some_at(typingctx: Any, places: Any, offset: Any, live: Any) -> Any:
    """``load_at`` with zeros in place ``j`` where bit ``j`` of ``live`` is 0."""
    if not _are_addresses(places):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = []
        for j, place in enumerate(cgutils.unpack_tuple(builder, args[0], places.count)):
            value = _load_16(builder, place, args[1])
            bit = builder.trunc(builder.lshr(args[2], ir.Constant(I64, j)), I1)
            values.append(builder.select(bit, value, ir.Constant(value.type, None)))
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(Vector(16), places.count)(places, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def prefetch_at(typingctx: Any, places: Any, offset: Any, write: Any) -> Any:
    """Ask for the cache lines at a tuple of addresses, all moved by an offset; to write them where ``write`` is 1."""
    written = literal(write)
    if not _are_addresses(places) or written is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        for place in cgutils.unpack_tuple(builder, args[0], places.count):
            ask_for_line(builder, builder.add(place, args[1]), written)
        return context.get_dummy_value()

    return types.void(places, types.int64, write), codegen
