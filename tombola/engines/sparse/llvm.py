"""The numba type ``<n x float>`` and what intrinsics on it are written with.

Here and in the modules built on it nothing is checked: the program that calls a kernel has fixed every address and
length beforehand.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import models, register_model

I1, I8, I32, I64 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()


class Vector(types.Type):
    """The numba type ``<lanes x float>``; ``lanes`` is any positive number, best a multiple of 16."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Vector({lanes})")


@register_model(Vector)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(F32, fe_type.lanes))


def literal(kind: Any) -> int | None:
    """The number that an argument is written as in the source; None where it is known only at run time."""
    return kind.literal_value if isinstance(kind, types.IntegerLiteral) else None


def pointer(builder: ir.IRBuilder, address: Any, kind: ir.Type) -> Any:
    """An address as a pointer to values of a kind."""
    return builder.inttoptr(address, kind.as_pointer())


def splat(builder: ir.IRBuilder, scalar: Any, lanes: int) -> Any:
    """A scalar in all lanes."""
    vector = ir.VectorType(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(
        first, ir.Constant(vector, ir.Undefined), ir.Constant(ir.VectorType(I32, lanes), [0] * lanes)
    )


def shuffle(builder: ir.IRBuilder, a: Any, b: Any, order: list[int]) -> Any:
    """The lanes of two vectors, counted one after the other, in another order."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(order)), order))


def call_named(builder: ir.IRBuilder, name: str, result: ir.Type, arguments: list[Any]) -> Any:
    """Call one of LLVM's own functions."""
    function = cgutils.get_or_insert_function(
        builder.module, ir.FunctionType(result, [a.type for a in arguments]), name
    )
    return builder.call(function, arguments)


def vector_name(vector: ir.Type) -> str:
    """How LLVM's functions name a type of vectors."""
    return f"v{vector.count}f32"


def gated(builder: ir.IRBuilder, gate: Any, a: Any) -> Any:
    """``a`` where ``gate`` is not 0 or less, else 0."""
    zero = ir.Constant(a.type, None)
    return builder.select(builder.fcmp_ordered("<=", gate, zero), zero, a)


def ask_for_line(builder: ir.IRBuilder, address: Any, write: int) -> None:
    """Ask for the cache line at an address, to write it where ``write`` is 1.

    Into the second-level cache: the first is full of what the step is working on.
    """
    kind = ir.FunctionType(ir.VoidType(), [I8.as_pointer(), I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
    builder.call(function, [pointer(builder, address, I8), *(ir.Constant(I32, hint) for hint in (write, 2, 1))])
