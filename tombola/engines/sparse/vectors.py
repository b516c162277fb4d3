"""Arithmetic on vectors of float32 that becomes plain machine instructions.

LLVM splits a vector into as many registers as the machine needs: 64 lanes are 4 registers with AVX-512, 8 with AVX2, 16
with NEON, all live at once in a loop that accumulates.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin

from tombola.engines.sparse.llvm import F32, I32, Vector, call_named, gated, shuffle, splat, vector_name


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once. ``a`` may be a float32, which stands for itself in all lanes."""
    if not (isinstance(b, Vector) and b == c):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        first = args[0] if isinstance(signature.args[0], Vector) else splat(builder, args[0], b.lanes)
        return call_named(builder, f"llvm.fma.{vector_name(args[1].type)}", args[1].type, [first, args[1], args[2]])

    return b(a if isinstance(a, Vector) else types.float32, b, c), codegen


def _binary(operation: Any, emit: Callable[[ir.IRBuilder, Any, Any], Any]) -> None:
    @infer_global(operation)
    class Arithmetic(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:
            a, b = args if len(args) == 2 else (None, None)
            if isinstance(a, Vector) and a == b:
                return a(a, b)
            if isinstance(a, Vector) and b == types.float32:
                return a(a, b)
            return b(a, b) if isinstance(b, Vector) and a == types.float32 else None

    def lower(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        lanes = signature.return_type.lanes
        a, b = (v if isinstance(v.type, ir.VectorType) else splat(builder, v, lanes) for v in args)
        return emit(builder, a, b)

    for kinds in ((Vector, Vector), (Vector, types.Float), (types.Float, Vector)):
        lower_builtin(operation, *kinds)(lower)


_binary(operator.add, lambda builder, a, b: builder.fadd(a, b))
_binary(operator.sub, lambda builder, a, b: builder.fsub(a, b))
_binary(operator.mul, lambda builder, a, b: builder.fmul(a, b))
_binary(operator.truediv, lambda builder, a, b: builder.fdiv(a, b))


def _unary(emit: Callable[[ir.IRBuilder, Any], Any]) -> Any:
    @intrinsic
    def apply(typingctx: Any, a: Any) -> Any:
        if not isinstance(a, Vector):
            return None

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            return emit(builder, args[0])

        return a(a), codegen

    return apply


square_root = _unary(lambda builder, a: call_named(builder, f"llvm.sqrt.{vector_name(a.type)}", a.type, [a]))
round_even = _unary(lambda builder, a: call_named(builder, f"llvm.rint.{vector_name(a.type)}", a.type, [a]))


@intrinsic
def maximum(typingctx: Any, a: Any, b: Any) -> Any:
    """The larger in each lane; a NaN in ``b`` stays, as does one in ``a``."""
    if not (isinstance(a, Vector) and a == b):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        keep = builder.or_(builder.fcmp_ordered(">", args[0], args[1]), builder.fcmp_unordered("uno", args[0], args[0]))
        return builder.select(keep, args[0], args[1])

    return a(a, b), codegen


@intrinsic
def rectify(typingctx: Any, a: Any) -> Any:
    """ReLU: 0 where an element is 0 or less; NaN stays NaN, as in torch."""
    if not isinstance(a, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        zero = ir.Constant(args[0].type, None)
        return builder.select(builder.fcmp_ordered("<=", args[0], zero), zero, args[0])

    return a(a), codegen


@intrinsic
def where_positive(typingctx: Any, gate: Any, a: Any) -> Any:
    """``a`` where ``gate`` is not 0 or less, else 0: the gradient of a ReLU whose output is ``gate``."""
    if not (isinstance(a, Vector) and a == gate):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return gated(builder, args[0], args[1])

    return a(gate, a), codegen


@intrinsic(prefer_literal=True)
def first_lanes(typingctx: Any, a: Any, count: Any) -> Any:
    """``a`` with every lane from ``count`` on set to 0; ``count`` is known only at run time."""
    if not isinstance(a, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(I32, a.lanes)
        lane = ir.Constant(kind, list(range(a.lanes)))
        limit = splat(builder, builder.trunc(args[1], I32), a.lanes)
        return builder.select(builder.icmp_signed("<", lane, limit), args[0], ir.Constant(args[0].type, None))

    return a(a, types.int64), codegen


@intrinsic
def fold(typingctx: Any, a: Any) -> Any:
    """The sum of a vector's runs of 16 lanes, always in the same order: halves, quarters, ..."""
    if not isinstance(a, Vector) or a.lanes % 16:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        parts = [
            shuffle(builder, args[0], args[0], list(range(i, i + 16))) if a.lanes > 16 else args[0]
            for i in range(0, a.lanes, 16)
        ]
        while len(parts) > 1:
            half = (len(parts) + 1) // 2
            parts = [builder.fadd(p, q) for p, q in zip(parts, parts[half:], strict=False)] + parts[
                len(parts) - half : half
            ]
        return parts[0]

    return Vector(16)(a), codegen


@intrinsic
def dot16(typingctx: Any, a: Any, b: Any) -> Any:
    """The products of two vectors, summed over their runs of 16 lanes one after the other: 16 partial sums."""
    if not isinstance(a, Vector) or a != b or a.lanes % 16:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        result = None
        for i in range(0, a.lanes, 16):
            x, y = (shuffle(builder, v, v, list(range(i, i + 16))) if a.lanes > 16 else v for v in args)
            result = (
                builder.fmul(x, y) if result is None else call_named(builder, "llvm.fma.v16f32", x.type, [x, y, result])
            )
        return result

    return Vector(16)(a, b), codegen


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """The sum of all lanes of a vector of a power of two of them, halved again and again."""
    if not isinstance(a, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value, size = args[0], a.lanes
        while size > 1:
            size //= 2
            value = builder.fadd(
                shuffle(builder, value, value, list(range(size))),
                shuffle(builder, value, value, list(range(size, 2 * size))),
            )
        return builder.extract_element(value, ir.Constant(I32, 0))

    return types.float32(a), codegen


def _joined(builder: ir.IRBuilder, rows: list[Any], distance: int) -> list[Any]:
    """One stage of a transposition that adds as it goes, on vectors of 16: neighbours become one vector.

    Lanes whose bit ``distance`` is 0 go on with the sums of the first of the two, the others with those of the second.
    After the stages 1, 2, 4 and 8 lane i holds the sum of row i.
    """
    even = [(j if j // distance % 2 == 0 else 16 + j - distance) for j in range(16)]
    odd = [(j + distance if j // distance % 2 == 0 else 16 + j) for j in range(16)]
    return [
        builder.fadd(shuffle(builder, p, q, even), shuffle(builder, p, q, odd))
        for p, q in zip(rows[::2], rows[1::2], strict=True)
    ]


@intrinsic
def totals(typingctx: Any, vectors: Any) -> Any:
    """The sums of 16 vectors of 16 lanes each, as one vector: a transposition that adds as it goes."""
    if not (isinstance(vectors, types.UniTuple) and vectors.count == 16 and vectors.dtype == Vector(16)):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = cgutils.unpack_tuple(builder, args[0], 16)
        for distance in (1, 2, 4, 8):
            rows = _joined(builder, rows, distance)
        return rows[0]

    return Vector(16)(vectors), codegen


@intrinsic
def totals4(typingctx: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The sums of 4 vectors of 16 lanes each, as a vector of 4."""
    if not all(v == Vector(16) for v in (a, b, c, d)):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = list(args)
        for distance in (1, 2):
            rows = _joined(builder, rows, distance)
        value = rows[0]
        for size in (8, 4):
            value = builder.fadd(
                shuffle(builder, value, value, list(range(size))),
                shuffle(builder, value, value, list(range(size, 2 * size))),
            )
        return value

    return Vector(4)(a, b, c, d), codegen


@intrinsic
def power_of_two(typingctx: Any, exponent: Any) -> Any:
    """``2 ** exponent`` for whole exponents from -126 to 127, held as float32."""
    if not isinstance(exponent, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(I32, exponent.lanes)
        whole = builder.fptosi(args[0], kind)
        biased = builder.add(whole, ir.Constant(kind, [127] * exponent.lanes))
        return builder.bitcast(builder.shl(biased, ir.Constant(kind, [23] * exponent.lanes)), args[0].type)

    return exponent(exponent), codegen


@intrinsic
def convert_f32(typingctx: Any, value: Any) -> Any:
    """A float64 rounded to float32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.fptrunc(args[0], F32)

    return types.float32(types.float64), codegen


@intrinsic
def where_same(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes where ``a == b`` or ``a`` is NaN, else ``no``."""
    if not (isinstance(a, Vector) and a == b == yes == no):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        same = builder.or_(
            builder.fcmp_ordered("==", args[0], args[1]), builder.fcmp_unordered("uno", args[0], args[0])
        )
        return builder.select(same, args[2], args[3])

    return a(a, b, yes, no), codegen
