"""Kept, squeezed and host tokens over sample images: values, JSON and HTML."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET

import pytest
from pydantic import ValidationError

from vitslim.errors import InputError
from vitslim.report import parse_report, render_html, render_json, render_markdown, report_schema
from vitslim.results import Report, SqueezedBlock, TokenPicture

IMAGE = base64.b64encode(b"\xff\xd8 pixels").decode()
SVG = "{http://www.w3.org/2000/svg}"


def picture(label: str = "tench", **changes: object) -> TokenPicture:
    """Nine patches: 3 and 5 are fused into 4, then 0 and 8 into 4 and 7, and 1 is dropped."""
    blocks = (
        SqueezedBlock(block="blocks.1", kept=(0, 1, 2, 4, 6, 7, 8), squeezed={3: 4, 5: 4}),
        SqueezedBlock(block="blocks.2", kept=(2, 4, 6, 7), squeezed={0: 4, 8: 7}),
    )
    fields = {"label": label, "media_type": "image/jpeg", "image": IMAGE, "rows": 3, "columns": 3, "blocks": blocks}
    return TokenPicture.model_validate({**fields, **changes})


@pytest.fixture
def pictured_report(full_report: Report) -> Report:
    return full_report.model_copy(update={"token_pictures": (picture(), picture("church"))})


def drawings(report: Report) -> list[ET.Element]:
    section = render_html(report).partition("<h2>Kept and squeezed tokens</h2>")[2].partition("</section>")[0]
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", section, re.DOTALL)]


def test_every_patch_has_one_state() -> None:
    first, second = picture().blocks
    assert {state: first.patches(state, 9) for state in ("kept", "host", "squeezed", "gone")} == {
        "kept": (0, 1, 2, 6, 7, 8),
        "host": (4,),
        "squeezed": (3, 5),
        "gone": (),
    }
    assert {state: second.patches(state, 9) for state in ("kept", "host", "squeezed", "gone")} == {
        "kept": (2, 6),
        "host": (4, 7),
        "squeezed": (0, 8),
        "gone": (1, 3, 5),
    }
    assert first.hosts == {4: 2}


def test_a_token_of_no_patch_is_no_host() -> None:
    block = SqueezedBlock(block="blocks.0", kept=(0, 1), squeezed={2: None, 3: None})
    assert block.hosts == {}
    assert block.patches("squeezed", 4) == (2, 3)


@pytest.mark.parametrize(
    "changes", [{"image": '"/><script>'}, {"rows": 0}, {"media_type": "text/html"}, {"rows": 2, "columns": 2}]
)
def test_invalid_pictures_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        picture(**changes)


def test_writing_and_reading_keep_pictures(pictured_report: Report) -> None:
    text = render_json(pictured_report)
    assert parse_report(text) == pictured_report
    data = json.loads(text)
    data["token_pictures"][0]["blocks"][0]["kept"][0] = 9
    with pytest.raises(InputError, match=r"corrupt at 'token_pictures\.0'.*patch 9 of a grid with 9"):
        parse_report(json.dumps(data))


def test_a_report_without_the_field_is_still_read(full_report: Report) -> None:
    data = json.loads(render_json(full_report))
    del data["token_pictures"]
    assert parse_report(json.dumps(data)) == full_report


def test_the_schema_describes_pictures() -> None:
    definitions = report_schema()["$defs"]
    assert definitions["SqueezedBlock"]["properties"]["kept"]["description"].startswith("Patches whose tokens are left")


def test_the_page_has_a_row_per_image_and_a_column_per_block(pictured_report: Report) -> None:
    found = drawings(pictured_report)
    assert len(found) == 2 * (1 + 2)
    assert [svg.get("viewBox") for svg in found] == ["0 0 3 3"] * 6
    images = [element for svg in found for element in svg.iter(f"{SVG}image")]
    assert [image.get("href") for image in images] == [f"data:image/jpeg;base64,{IMAGE}"] * 2
    assert len({image.get("id") for image in images}) == 2
    used = [element.get("href") for svg in found for element in svg.iter(f"{SVG}use")]
    assert used == [f"#{images[0].get('id')}"] * 2 + [f"#{images[1].get('id')}"] * 2


def test_squeezed_and_missing_patches_are_covered_and_hosts_outlined(pictured_report: Report) -> None:
    _, first, second, *_ = drawings(pictured_report)
    assert {path.get("class"): path.get("d") for path in first.iter(f"{SVG}path")} == {
        "squeezed": "M0 1h1v1h-1zM2 1h1v1h-1z"
    }
    assert {path.get("class"): path.get("d") for path in second.iter(f"{SVG}path")} == {
        "squeezed": "M0 0h1v1h-1zM2 2h1v1h-1z",
        "gone": "M1 0h1v1h-1zM0 1h1v1h-1zM2 1h1v1h-1z",
    }
    titles = [title.text for title in first.iter(f"{SVG}title")]
    assert titles == ["row 2, column 2: 2 tokens fused into it"]
    (outline,) = first.iter(f"{SVG}rect")
    assert 1 < float(outline.get("x", "")) < 1.2


def test_neighbors_of_one_row_are_one_rectangle(full_report: Report) -> None:
    block = SqueezedBlock(block="blocks.1", kept=(0, 1), squeezed={})
    report = full_report.model_copy(update={"token_pictures": (picture(blocks=(block,)),)})
    _, drawing = drawings(report)
    (path,) = drawing.iter(f"{SVG}path")
    assert path.get("d") == "M2 0h1v1h-1zM0 1h3v1h-3zM0 2h3v1h-3z"


def test_drawings_have_a_text_alternative(pictured_report: Report) -> None:
    labels = [svg.get("aria-label") for svg in drawings(pictured_report)]
    assert labels[0] == "Image of class tench"
    assert labels[1] == "Class tench after blocks.1: 7 of 9 patches kept, 1 host, 2 squeezed"
    assert labels[5] == "Class church after blocks.2: 4 of 9 patches kept, 2 hosts, 2 squeezed, 3 gone"


def test_the_legend_lists_the_states_that_occur(full_report: Report, pictured_report: Report) -> None:
    page = render_html(pictured_report)
    assert re.findall(r'<span class="patch (\w+)">', page) == ["kept", "host", "squeezed", "gone"]
    assert "one additional token" not in page
    pruned = SqueezedBlock(block="blocks.1", kept=(0, 1), squeezed={})
    page = render_html(full_report.model_copy(update={"token_pictures": (picture(blocks=(pruned,)),)}))
    assert re.findall(r'<span class="patch (\w+)">', page) == ["kept", "gone"]
    fused = SqueezedBlock(block="blocks.1", kept=(0, 1), squeezed={2: None})
    page = render_html(full_report.model_copy(update={"token_pictures": (picture(blocks=(fused,)),)}))
    assert "one additional token" in page


def test_labels_of_pictures_are_escaped(full_report: Report) -> None:
    hostile = '<script>alert(1)</script>"><img src=x onerror=alert(1)>&\x1b[31m'
    block = SqueezedBlock(block=hostile, kept=(0,))
    report = full_report.model_copy(update={"token_pictures": (picture(hostile, blocks=(block,)),)})
    page = render_html(report)
    assert "<script" not in page
    assert "<img" not in page
    assert "\x1b" not in page
    assert all(svg.get("aria-label") for svg in drawings(report))


def test_a_report_without_pictures_has_no_section(full_report: Report) -> None:
    assert "Kept and squeezed tokens" not in render_html(full_report)


def test_the_page_loads_images_from_itself_only(pictured_report: Report) -> None:
    page = render_html(pictured_report)
    assert "default-src 'none'; img-src data:;" in page
    assert not re.search(r'(src|href)="(?!#|data:image/(png|jpeg);base64,)', page)


def test_the_summary_has_no_picture(full_report: Report, pictured_report: Report) -> None:
    assert render_markdown(pictured_report) == render_markdown(full_report)
