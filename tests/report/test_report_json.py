"""report.json: writing and reading keep every value, and other files are refused in one sentence."""

from __future__ import annotations

import json
import math

import pytest

from vitslim.errors import InputError
from vitslim.report import parse_report, render_json, report_schema
from vitslim.results import Report


def test_writing_and_reading_keep_every_value(full_report: Report, bare_report: Report) -> None:
    for report in (full_report, bare_report):
        assert parse_report(render_json(report)) == report


def test_non_finite_numbers_are_kept_in_strict_json(full_report: Report) -> None:
    stage = full_report.stages[0].model_copy(update={"metrics": {"sqnr_db": math.inf, "loss": math.nan}})
    text = render_json(full_report.model_copy(update={"stages": (stage,)}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(text, parse_constant=refuse)
    metrics = parse_report(text).stages[0].metrics
    assert metrics["sqnr_db"] == math.inf
    assert math.isnan(metrics["loss"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "not a vitslim report"),
        ('{"a": 1}', "not a vitslim report"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 3, "name": "x"}', "corrupt at 'model'"),
    ],
)
def test_other_files_are_refused(text: str, expected: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_report(text)
    assert expected in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint
    assert raised.value.exit_code == 5


def test_the_error_names_an_invalid_value(full_report: Report) -> None:
    text = render_json(full_report)
    many, endless = json.loads(text), json.loads(text)
    many["stages"][2]["cost"]["macs"] = "many"
    endless["stages"][0]["seconds"] = "NaN"
    for data, place in ((many, r"stages\.2\.cost\.macs"), (endless, r"stages\.0\.seconds")):
        with pytest.raises(InputError, match=place):
            parse_report(json.dumps(data))


def test_schema_describes_the_fields_and_names_all_of_them(full_report: Report) -> None:
    schema = report_schema()
    assert schema["properties"]["created"]["description"] == "ISO 8601, UTC."
    assert schema["$defs"]["Measurement"]["properties"]["spread_ms"]["description"].startswith("Interquartile range")
    assert set(schema["properties"]) == set(json.loads(render_json(full_report)))
    assert set(schema["$defs"]["StageRecord"]["properties"]) == set(json.loads(render_json(full_report))["stages"][0])
