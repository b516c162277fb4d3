"""``tombola compress``: a ticket as a small file, by shared values and Huffman codes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tombola.cli import output
from tombola.cli.options import Verb, json_option, option, path_option

if TYPE_CHECKING:
    from tombola.shipping.sizes import LayerSizes, Sizes


@click.command("compress", cls=Verb)
@click.argument("ticket", type=click.Path(path_type=Path))
@path_option(
    *("-o", "--output", "path"),
    section="Options",
    metavar="FILE",
    help="the compressed file  [default: TICKET with the ending .tdc]",
)
@option(
    "--bits",
    section="Options",
    type=click.IntRange(1, 12),
    metavar="INTEGER",
    help="first replace each layer's weights by at most 2**bits shared values, without training  "
    "[default: none, values stay as they are]",
)
@json_option()
def command(ticket: Path, path: Path | None, bits: int | None, as_json: bool) -> None:
    """Write the ticket in the file TICKET as a compressed file: Deep Compression's shared values and Huffman codes.

    Nothing is lost beyond what --bits asks for: tombola decompress gives the ticket back bit for bit.
    """
    from tombola.shipping.compressed import SUFFIX, compress
    from tombola.ticket import Ticket

    loaded = Ticket.load(ticket)
    path = ticket.with_suffix(SUFFIX) if path is None else path
    sizes = compress(loaded, path, bits)
    if as_json:
        _document(path, sizes)
    else:
        _report(path, sizes, bits)


def _document(path: Path, sizes: Sizes) -> None:
    output.document({"file": str(path), "bytes": sizes.file, "ratio": sizes.ratio, "layers": sizes.rows()})


def _report(path: Path, sizes: Sizes, bits: int | None) -> None:
    from tombola.shipping.sizes import STAGES

    total = sizes.total
    heads = {"layer": "left", "kept": "right", "values": "right"} | {f"{stage} B": "right" for stage in STAGES}
    rows = [_row(part, STAGES) for part in (*sizes.layers, sizes.others, total)]
    ratios = [f"{total.dense / size:.1f}x" if (size := getattr(total, stage)) else "" for stage in STAGES]
    output.table(output.columns(heads, [*rows, ["ratio", "", "", *ratios]]))
    output.sentence(
        f"{output.inert(path)}: {sizes.file:,} bytes on disk, {sizes.ratio:.1f} times smaller than the "
        f"{total.entries:,} values of the dense net ({total.dense:,} bytes); read back, it is the same bit for bit"
    )
    unshared = [layer.name for layer in sizes.layers if (layer.distinct or 0) > max(layer.kept / 2, 32)]
    if unshared and bits is None:
        names = ", ".join(map(output.inert, unshared))
        output.sentence(f"Hardly any values are shared in {names}: --bits 5 shares them, at a loss of precision")


def _row(part: LayerSizes, stages: tuple[str, ...]) -> list[str]:
    sizes: list[Any] = [part.kept, part.distinct, *(getattr(part, stage) for stage in stages)]
    return [part.name, *("" if size is None else f"{size:,}" for size in sizes)]
