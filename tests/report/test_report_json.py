"""report.json: nothing is lost on the way out and in, and what is not a report is refused in one sentence."""

from __future__ import annotations

import json
import math

import pytest

from vitslim.errors import InputError
from vitslim.report import parse_report, render_json, report_schema
from vitslim.results import Report


def test_round_trip_keeps_every_value(full_report: Report, bare_report: Report) -> None:
    for report in (full_report, bare_report):
        assert parse_report(render_json(report)) == report


def test_infinite_and_undefined_numbers_survive_in_strict_json(full_report: Report) -> None:
    stage = full_report.stages[0].model_copy(update={"metrics": {"sqnr_db": math.inf, "loss": math.nan}})
    text = render_json(full_report.model_copy(update={"stages": (stage,)}))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(text, parse_constant=refuse)
    metrics = parse_report(text).stages[0].metrics
    assert metrics["sqnr_db"] == math.inf
    assert math.isnan(metrics["loss"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not valid JSON"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1, 2]", "not a vitslim report"),
        ('{"a": 1}', "not a vitslim report"),
        ('{"schema_version": 99}', "schema version 99"),
        ('{"schema_version": 1, "name": "x"}', "corrupt at 'model'"),
    ],
)
def test_what_is_no_report_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        parse_report(text)
    assert said in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint
    assert raised.value.exit_code == 5


def test_a_damaged_value_is_named(full_report: Report) -> None:
    data = json.loads(render_json(full_report))
    data["stages"][2]["cost"]["macs"] = "many"
    with pytest.raises(InputError, match=r"stages\.2\.cost\.macs"):
        parse_report(json.dumps(data))


def test_schema_describes_the_fields_and_names_all_of_them(full_report: Report) -> None:
    schema = report_schema()
    assert schema["properties"]["created"]["description"] == "ISO 8601, UTC."
    assert schema["$defs"]["Measurement"]["properties"]["spread_ms"]["description"].startswith("Interquartile range")
    assert set(schema["properties"]) == set(json.loads(render_json(full_report)))
    assert set(schema["$defs"]["StageRecord"]["properties"]) == set(json.loads(render_json(full_report))["stages"][0])
