"""Vectors of float32 for compiled kernels: loads, stores and arithmetic that become plain machine instructions.

A kernel works on *addresses* (int64) and on values of type ``<n x float>``, where ``n`` is a number written in the
source or fixed by a closure. LLVM splits a vector into as many registers as the machine needs: 64 lanes are 4 registers
with AVX-512, 8 with AVX2, 16 with NEON, all live at once in a loop that accumulates. Array indexing in numba would
instead test for negative indices and for overlapping arrays, which keeps its loops from being vectorised at all.

Nothing is checked here: the program that calls a kernel has fixed every address and length beforehand.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

_I1, _I8, _I32, _I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
_F32, _F64 = ir.FloatType(), ir.DoubleType()


class Vector(types.Type):
    """The numba type ``<lanes x float>``; ``lanes`` is any positive number, best a multiple of 16."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(_F32, fe_type.lanes))


def _literal(kind: Any) -> int | None:
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else None


def _pointer(builder: ir.IRBuilder, address: Any, kind: ir.Type) -> Any:
    return builder.inttoptr(address, kind.as_pointer())


def _splat(builder: ir.IRBuilder, scalar: Any, lanes: int) -> Any:
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
    )


def _shuffle(builder: ir.IRBuilder, a: Any, b: Any, order: list[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_I32, len(order)), order))


def _call(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [a.type for a in arguments]), name
    )
    return builder.call(function, arguments)


def _name(vector: ir.Type) -> str:
    return f"v{vector.count}f32"


# Scalars -------------------------------------------------------------------------------------------------------------


def _scalar_load(kind: Any, llvm: ir.Type, widen: ir.Type | None = None) -> Any:
    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
            value = builder.load(_pointer(builder, args[0], llvm))
            value.align = llvm.width // 8 if isinstance(llvm, ir.IntType) else (4 if llvm == _F32 else 8)
            if widen is None:
                return value
            return builder.zext(value, widen) if llvm == _I8 else builder.sext(value, widen)

        return kind(types.int64), codegen

    return load


load_f32 = _scalar_load(types.float32, _F32)
load_f64 = _scalar_load(types.float64, _F64)
load_i64 = _scalar_load(types.int64, _I64)
load_i32 = _scalar_load(types.int64, _I32, _I64)
"""A signed 32-bit index, widened."""
load_u8 = _scalar_load(types.int64, _I8, _I64)


@intrinsic
def store_f32(typingctx: Any, address: Any, value: Any) -> Any:
    """Store one float32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _F32))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), codegen


@intrinsic
def store_f64(typingctx: Any, address: Any, value: Any) -> Any:
    """Store one float64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _F64))
        return context.get_dummy_value()

    return types.void(types.int64, types.float64), codegen


@intrinsic
def store_i64(typingctx: Any, address: Any, value: Any) -> Any:
    """Store one int64."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        builder.store(args[1], _pointer(builder, args[0], _I64))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def fields(typingctx: Any, address: Any, count: Any) -> Any:
    """The first ``count`` int64 at an address, as a tuple: how a kernel reads its arguments."""
    number = _literal(count)
    if number is None:
        return None
    result = types.UniTuple(types.int64, number)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        base = _pointer(builder, args[0], _I64)
        values = [builder.load(builder.gep(base, [ir.Constant(_I64, i)])) for i in range(number)]
        return context.make_tuple(builder, result, values)

    return result(types.int64, count), codegen


@intrinsic
def call(typingctx: Any, function: Any, args: Any, frame: Any, thread: Any, threads: Any) -> Any:
    """Call the compiled kernel at an address with ``(args, frame, thread, threads)``."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 4)
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 5), codegen


@intrinsic
def prefetch(typingctx: Any, address: Any) -> Any:
    """Ask for the cache line at an address; harmless wherever it points."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = _pointer(builder, args[0], _I8)
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer, ir.Constant(_I32, 0), ir.Constant(_I32, 3), ir.Constant(_I32, 1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


# Vectors in and out of memory ----------------------------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def zeros(typingctx: Any, lanes: Any) -> Any:
    """A vector of zeros: ``zeros(64)``."""
    number = _literal(lanes)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return ir.Constant(ir.VectorType(_F32, number), None)

    return Vector(number)(lanes), codegen


@intrinsic(prefer_literal=True)
def broadcast(typingctx: Any, value: Any, lanes: Any) -> Any:
    """One float32 in all lanes."""
    number = _literal(lanes)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], number)

    return Vector(number)(types.float32, lanes), codegen


@intrinsic(prefer_literal=True)
def load(typingctx: Any, address: Any, lanes: Any) -> Any:
    """Consecutive float32 from a float-aligned address."""
    number = _literal(lanes)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = builder.load(_pointer(builder, args[0], ir.VectorType(_F32, number)))
        value.align = 4
        return value

    return Vector(number)(types.int64, lanes), codegen


@intrinsic(prefer_literal=True)
def load_parts(typingctx: Any, address: Any, step: Any, parts: Any, lanes: Any) -> Any:
    """``parts`` runs of ``lanes`` float32, ``step`` bytes apart, joined into one vector."""
    number, width = _literal(parts), _literal(lanes)
    if number is None or width is None or number & (number - 1):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        vectors = []
        for i in range(number):
            address = builder.add(args[0], builder.mul(args[1], ir.Constant(_I64, i)))
            value = builder.load(_pointer(builder, address, ir.VectorType(_F32, width)))
            value.align = 4
            vectors.append(value)
        while len(vectors) > 1:
            size = vectors[0].type.count
            vectors = [
                _shuffle(builder, vectors[i], vectors[i + 1], list(range(2 * size))) for i in range(0, len(vectors), 2)
            ]
        return vectors[0]

    return Vector(number * width)(types.int64, types.int64, parts, lanes), codegen


@intrinsic
def store(typingctx: Any, address: Any, vector: Any) -> Any:
    """Write a vector to consecutive float32 at a float-aligned address."""
    if not isinstance(vector, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        written = builder.store(args[1], _pointer(builder, args[0], args[1].type))
        written.align = 4
        return context.get_dummy_value()

    return types.void(types.int64, vector), codegen


@intrinsic(prefer_literal=True)
def store_parts(typingctx: Any, address: Any, step: Any, vector: Any, lanes: Any) -> Any:
    """The opposite of ``load_parts``: runs of ``lanes`` float32, ``step`` bytes apart."""
    width = _literal(lanes)
    if width is None or not isinstance(vector, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        for i in range(vector.lanes // width):
            part = _shuffle(builder, args[2], args[2], list(range(i * width, (i + 1) * width)))
            address = builder.add(args[0], builder.mul(args[1], ir.Constant(_I64, i)))
            written = builder.store(part, _pointer(builder, address, part.type))
            written.align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector, lanes), codegen


@intrinsic(prefer_literal=True)
def load_bytes(typingctx: Any, address: Any, lanes: Any) -> Any:
    """Consecutive uint8 as float32."""
    number = _literal(lanes)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        value = builder.load(_pointer(builder, args[0], ir.VectorType(_I8, number)))
        value.align = 1
        return builder.uitofp(value, ir.VectorType(_F32, number))

    return Vector(number)(types.int64, lanes), codegen


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
                line = builder.load(_pointer(builder, address, vector))
                line.align = 1 if to_float else 4
                lines.append(line)
            lines = _transposed(builder, lines)
            if to_float:
                lines = [builder.uitofp(line, ir.VectorType(_F32, 16)) for line in lines]
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
        lines = [_shuffle(builder, a, b, order) for a, b in pairs for order in (low, high)]
    return lines


gather_bytes = _gathered("gather_bytes", _I8, to_float=True)
gather_floats = _gathered("gather_floats", _F32, to_float=False)


# Arithmetic ----------------------------------------------------------------------------------------------------------


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """``a * b + c``, rounded once. ``a`` may be a float32, which stands for itself in all lanes."""
    if not (isinstance(b, Vector) and b == c):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        first = args[0] if isinstance(signature.args[0], Vector) else _splat(builder, args[0], b.lanes)
        return _call(builder, f"llvm.fma.{_name(args[1].type)}", args[1].type, [first, args[1], args[2]])

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
        a, b = (v if isinstance(v.type, ir.VectorType) else _splat(builder, v, lanes) for v in args)
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


square_root = _unary(lambda builder, a: _call(builder, f"llvm.sqrt.{_name(a.type)}", a.type, [a]))
round_even = _unary(lambda builder, a: _call(builder, f"llvm.rint.{_name(a.type)}", a.type, [a]))


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
        zero = ir.Constant(args[1].type, None)
        return builder.select(builder.fcmp_ordered("<=", args[0], zero), zero, args[1])

    return a(gate, a), codegen


@intrinsic
def where_equal(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``yes`` in the lanes where ``a == b``, else ``no``."""
    if not (isinstance(a, Vector) and a == b == yes == no):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

    return a(a, b, yes, no), codegen


@intrinsic(prefer_literal=True)
def first_lanes(typingctx: Any, a: Any, count: Any) -> Any:
    """``a`` with every lane from ``count`` on set to 0; ``count`` is known only at run time."""
    if not isinstance(a, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_I32, a.lanes)
        lane = ir.Constant(kind, list(range(a.lanes)))
        limit = _splat(builder, builder.trunc(args[1], _I32), a.lanes)
        return builder.select(builder.icmp_signed("<", lane, limit), args[0], ir.Constant(args[0].type, None))

    return a(a, types.int64), codegen


# Across lanes --------------------------------------------------------------------------------------------------------


@intrinsic
def fold(typingctx: Any, a: Any) -> Any:
    """The sum of a vector's runs of 16 lanes, always in the same order: halves, quarters, ..."""
    if not isinstance(a, Vector) or a.lanes % 16:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        parts = [
            _shuffle(builder, args[0], args[0], list(range(i, i + 16))) if a.lanes > 16 else args[0]
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
            x, y = (_shuffle(builder, v, v, list(range(i, i + 16))) if a.lanes > 16 else v for v in args)
            result = builder.fmul(x, y) if result is None else _call(builder, "llvm.fma.v16f32", x.type, [x, y, result])
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
                _shuffle(builder, value, value, list(range(size))),
                _shuffle(builder, value, value, list(range(size, 2 * size))),
            )
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(a), codegen


@intrinsic
def totals(typingctx: Any, vectors: Any) -> Any:
    """The sums of 16 vectors of 16 lanes each, as one vector: a transposition that adds as it goes."""
    if not (isinstance(vectors, types.UniTuple) and vectors.count == 16 and vectors.dtype == Vector(16)):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = cgutils.unpack_tuple(builder, args[0], 16)
        # Each stage joins neighbours: at distance d, lanes whose bit d is 0 go on with the sums of the first of the two,
        # the others with those of the second. In the end lane i holds the sum of row i.
        for distance in (1, 2, 4, 8):
            even = [(j if j // distance % 2 == 0 else 16 + j - distance) for j in range(16)]
            odd = [(j + distance if j // distance % 2 == 0 else 16 + j) for j in range(16)]
            rows = [
                builder.fadd(
                    _shuffle(builder, rows[2 * i], rows[2 * i + 1], even),
                    _shuffle(builder, rows[2 * i], rows[2 * i + 1], odd),
                )
                for i in range(len(rows) // 2)
            ]
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
            even = [(j if j // distance % 2 == 0 else 16 + j - distance) for j in range(16)]
            odd = [(j + distance if j // distance % 2 == 0 else 16 + j) for j in range(16)]
            rows = [
                builder.fadd(_shuffle(builder, p, q, even), _shuffle(builder, p, q, odd))
                for p, q in zip(rows[::2], rows[1::2], strict=True)
            ]
        value = rows[0]
        for size in (8, 4):
            value = builder.fadd(
                _shuffle(builder, value, value, list(range(size))),
                _shuffle(builder, value, value, list(range(size, 2 * size))),
            )
        return value

    return Vector(4)(a, b, c, d), codegen


# Bits, for exponentials and logarithms -------------------------------------------------------------------------------


@intrinsic
def power_of_two(typingctx: Any, exponent: Any) -> Any:
    """``2 ** exponent`` for whole exponents from -126 to 127, held as float32."""
    if not isinstance(exponent, Vector):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_I32, exponent.lanes)
        whole = builder.fptosi(args[0], kind)
        biased = builder.add(whole, ir.Constant(kind, [127] * exponent.lanes))
        return builder.bitcast(builder.shl(biased, ir.Constant(kind, [23] * exponent.lanes)), args[0].type)

    return exponent(exponent), codegen


@intrinsic
def convert_f32(typingctx: Any, value: Any) -> Any:
    """A float64 rounded to float32."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.fptrunc(args[0], _F32)

    return types.float32(types.float64), codegen


# Threads that work on one program ------------------------------------------------------------------------------------


@intrinsic
def add_atomically(typingctx: Any, address: Any, value: Any) -> Any:
    """Add to an int64 that other threads change too; what was there before."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _pointer(builder, args[0], _I64), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def load_atomically(typingctx: Any, address: Any) -> Any:
    """Read an int64 that other threads change; nothing read later is read before it."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_pointer(builder, args[0], _I64), "seq_cst", 8)

    return types.int64(types.int64), codegen


# Pixels anywhere, for convolutions -----------------------------------------------------------------------------------


def _are_addresses(kind: Any) -> bool:
    return isinstance(kind, types.UniTuple) and kind.dtype == types.int64


def _load_16(builder: ir.IRBuilder, place: Any, offset: Any) -> Any:
    value = builder.load(_pointer(builder, builder.add(place, offset), ir.VectorType(_F32, 16)))
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
                written = builder.store(value, _pointer(builder, builder.add(place, args[1]), value.type))
                written.align = 64 if streaming else 4
                if streaming:
                    written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_I32, 1)]))
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
        factor = _splat(builder, args[0], 16)
        where, before = (cgutils.unpack_tuple(builder, a, places.count) for a in (args[1], args[3]))
        after = [
            _call(builder, "llvm.fma.v16f32", b.type, [factor, _load_16(builder, p, args[2]), b])
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
            value = _call(builder, "llvm.fma.v16f32", value.type, [factor, _load_16(builder, place, args[2]), value])
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


def _gate(builder: ir.IRBuilder, gate: Any, a: Any) -> Any:
    zero = ir.Constant(a.type, None)
    return builder.select(builder.fcmp_ordered("<=", gate, zero), zero, a)


add_each = _on_each(lambda builder, a, b: builder.fadd(a, b))
gate_each = _on_each(_gate)
"""``where_positive(a, b)`` element by element; with a tuple twice, its ReLU."""


@intrinsic(prefer_literal=True)
def each(typingctx: Any, value: Any, count: Any) -> Any:
    """One float32 in all lanes of a tuple of vectors of 16."""
    number = _literal(count)
    if number is None:
        return None
    result = types.UniTuple(Vector(16), number)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        return context.make_tuple(builder, result, [_splat(builder, args[0], 16)] * number)

    return result(types.float32, count), codegen


@intrinsic
def four_totals(typingctx: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """The sums of the lanes of four vectors of 16, as one vector of 4."""
    if not all(v == Vector(16) for v in (a, b, c, d)):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = list(args)
        for distance in (1, 2):
            even = [(j if j // distance % 2 == 0 else 16 + j - distance) for j in range(16)]
            odd = [(j + distance if j // distance % 2 == 0 else 16 + j) for j in range(16)]
            rows = [
                builder.fadd(_shuffle(builder, p, q, even), _shuffle(builder, p, q, odd))
                for p, q in zip(rows[::2], rows[1::2], strict=True)
            ]
        value = rows[0]
        for size in (8, 4):
            value = builder.fadd(
                _shuffle(builder, value, value, list(range(size))),
                _shuffle(builder, value, value, list(range(size, 2 * size))),
            )
        return value

    return Vector(4)(a, b, c, d), codegen


@intrinsic
def load_some_at(typingctx: Any, places: Any, offset: Any, live: Any) -> Any:
    """``load_at`` with zeros in place ``j`` where bit ``j`` of ``live`` is 0."""
    if not _are_addresses(places):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        values = []
        for j, place in enumerate(cgutils.unpack_tuple(builder, args[0], places.count)):
            value = _load_16(builder, place, args[1])
            bit = builder.trunc(builder.lshr(args[2], ir.Constant(_I64, j)), _I1)
            values.append(builder.select(bit, value, ir.Constant(value.type, None)))
        return context.make_tuple(builder, signature.return_type, values)

    return types.UniTuple(Vector(16), places.count)(places, types.int64, types.int64), codegen


# Blocks of 16 rows of 16, for changes of layout -----------------------------------------------------------------------


@intrinsic(prefer_literal=True)
def stack_room(typingctx: Any, floats: Any) -> Any:
    """Address of room for ``floats`` float32 on the stack, the same at every turn of a loop; it begins undefined."""
    number = _literal(floats)
    if number is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        room = cgutils.alloca_once(builder, ir.ArrayType(_F32, number))
        room.align = 64
        return builder.ptrtoint(room, _I64)

    return types.int64(floats), codegen


@intrinsic
def transpose(typingctx: Any, address: Any) -> Any:
    """Transpose a matrix of 16 rows of 16 float32, one after the other from ``address``, in place."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        rows = [builder.add(args[0], ir.Constant(_I64, 64 * i)) for i in range(16)]
        places = [_pointer(builder, row, ir.VectorType(_F32, 16)) for row in rows]
        lines = [builder.load(place, align=4) for place in places]
        for line, place in zip(_transposed(builder, lines), places, strict=True):
            builder.store(line, place, align=4)
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@intrinsic(prefer_literal=True)
def prefetch_at(typingctx: Any, places: Any, offset: Any, write: Any) -> Any:
    """Ask for the cache lines at a tuple of addresses, all moved by an offset; to write them where ``write`` is 1."""
    written = _literal(write)
    if not _are_addresses(places) or written is None:
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        hints = [ir.Constant(_I32, written), ir.Constant(_I32, 2), ir.Constant(_I32, 1)]
        kind = ir.FunctionType(ir.VoidType(), [_I8.as_pointer(), _I32, _I32, _I32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        for place in cgutils.unpack_tuple(builder, args[0], places.count):
            builder.call(function, [_pointer(builder, builder.add(place, args[1]), _I8), *hints])
        return context.get_dummy_value()

    return types.void(places, types.int64, write), codegen


@intrinsic
def where_same(typingctx: Any, a: Any, b: Any, yes: Any, no: Any) -> Any:
    """``where_equal``, with ``yes`` also where ``a`` is NaN."""
    if not (isinstance(a, Vector) and a == b == yes == no):
        return None

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        same = builder.or_(
            builder.fcmp_ordered("==", args[0], args[1]), builder.fcmp_unordered("uno", args[0], args[0])
        )
        return builder.select(same, args[2], args[3])

    return a(a, b, yes, no), codegen
