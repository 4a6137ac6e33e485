"""Pictures of kept and squeezed tokens as inline SVG: a row per image, and a column per block that squeezes tokens.

Colors come from the style sheet of the page. One unit of a drawing is one patch, so that patches have whole numbers as
coordinates.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from vitslim.report.pictures.plots import child
from vitslim.report.wording import counted, plain
from vitslim.results import PatchState, Report, SqueezedBlock, TokenPicture

OUTLINE_INSET = 0.07
"""Distance of the outline of a host from the edge of its patch, so that neighboring outlines do not touch."""

WORDS: dict[PatchState, str] = {
    "kept": "shown unchanged",
    "host": "outlined; kept, and other tokens were fused into it",
    "squeezed": "tinted; fused into another token in this block",
    "gone": "covered; removed by an earlier block, or dropped",
}
"""State of a patch to its description in the legend."""

EXTRA_TOKEN = "Some tokens were fused into one additional token, which belongs to no patch."


@dataclass(frozen=True)
class TokenColumn:
    """Heading of one column: a block and the number of its tokens."""

    block: str
    counts: str


@dataclass(frozen=True)
class TokenRow:
    """One image: its class, and an SVG of the image and of each block."""

    label: str
    svgs: tuple[str, ...]
    """Well-formed SVG whose texts are escaped."""


@dataclass(frozen=True)
class TokenTable:
    """All pictures of a report."""

    columns: tuple[TokenColumn, ...]
    rows: tuple[TokenRow, ...]
    legend: tuple[tuple[PatchState, str], ...]
    """States that occur, each with its description."""
    note: str
    """Remark on tokens that are of no patch; empty without any."""


def token_table(report: Report) -> TokenTable | None:
    """Return the pictures of a report; None without any."""
    return picture_table(report.token_pictures, "token-image")


def picture_table(pictures: Sequence[TokenPicture], name: str) -> TokenTable | None:
    """Return the table of pictures, whose images have ids that begin with a name; None without pictures."""
    if not pictures:
        return None
    blocks = [(picture, block) for picture in pictures for block in picture.blocks]
    found = {state for picture, block in blocks for state in WORDS if block.patches(state, picture.patches)}
    extra = any(host is None for _, block in blocks for host in block.squeezed.values())
    return TokenTable(
        columns=tuple(_column(same, pictures[0].patches) for same in zip(*(p.blocks for p in pictures), strict=False)),
        rows=tuple(_row(picture, f"{name}-{index}") for index, picture in enumerate(pictures)),
        legend=tuple((state, words) for state, words in WORDS.items() if state in found),
        note=EXTRA_TOKEN if extra else "",
    )


def _column(blocks: Sequence[SqueezedBlock], patches: int) -> TokenColumn:
    """Return the heading of a column with the number of kept patches; `blocks` are the same block on each image."""
    counts = sorted({len(block.kept) for block in blocks})
    kept = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return TokenColumn(blocks[0].block, f"{kept} of {patches} patches")


def _row(picture: TokenPicture, name: str) -> TokenRow:
    original = _canvas(picture, f"Image of class {picture.label}")
    href = f"data:{picture.media_type};base64,{picture.image}"
    child(original, "image", id=name, href=href, width=picture.columns, height=picture.rows, preserveAspectRatio="none")
    return TokenRow(
        picture.label, (_text_of(original), *(_block_svg(picture, block, name) for block in picture.blocks))
    )


def _block_svg(picture: TokenPicture, block: SqueezedBlock, image: str) -> str:
    """Return the image with squeezed and missing patches covered and hosts outlined."""
    svg = _canvas(picture, description(picture, block))
    child(svg, "use", href=f"#{image}")
    for state in ("squeezed", "gone"):
        if path := _area(block.patches(state, picture.patches), picture.columns):
            child(svg, "path", cls=state, d=path)
    for patch, guests in block.hosts.items():
        row, column = divmod(patch, picture.columns)
        side = f"{1 - 2 * OUTLINE_INSET:.2f}"
        corner = {"x": f"{column + OUTLINE_INSET:.2f}", "y": f"{row + OUTLINE_INSET:.2f}"}
        outline = child(svg, "rect", cls="host", width=side, height=side, **corner)
        tokens = counted(guests, "token")
        child(outline, "title", f"row {row + 1}, column {column + 1}: {tokens} fused into it")
    return _text_of(svg)


def description(picture: TokenPicture, block: SqueezedBlock) -> str:
    """Return the numbers of patches in each state, for screen readers."""
    numbers = {state: len(block.patches(state, picture.patches)) for state in WORDS}
    parts = [
        f"{numbers['kept'] + numbers['host']} of {picture.patches} patches kept",
        counted(numbers["host"], "host") if numbers["host"] else "",
        f"{numbers['squeezed']} squeezed" if numbers["squeezed"] else "",
        f"{numbers['gone']} gone" if numbers["gone"] else "",
    ]
    return f"Class {picture.label} after {block.block}: {', '.join(filter(None, parts))}"


def _canvas(picture: TokenPicture, title: str) -> ET.Element:
    """Return an empty drawing of the patch grid with a text alternative."""
    view = f"0 0 {picture.columns} {picture.rows}"
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=view, role="img")
    svg.set("aria-label", plain(title))
    return svg


def _area(patches: Sequence[int], columns: int) -> str:
    """Return the path that covers these patches, one rectangle for each run of neighbors in a row."""
    runs = groupby(enumerate(patches), key=lambda item: (item[1] // columns, item[1] - item[0]))
    parts = []
    for (row, _), members in runs:
        run = [patch for _, patch in members]
        parts.append(f"M{run[0] % columns} {row}h{len(run)}v1h-{len(run)}z")
    return "".join(parts)


def _text_of(svg: ET.Element) -> str:
    return ET.tostring(svg, encoding="unicode")
