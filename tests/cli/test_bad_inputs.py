"""Bad inputs of every kind: one sentence with the cause, and the documented exit code, without torch."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from bad_recipes import RECIPES, recipe

PLAN = ("plan", "r.yaml", "--no-trace")
PLAN_ZIP = ("plan", "r.zip", "--no-trace")


def zipped(contents: Mapping[str, str]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return file.getvalue()


def git(place: str) -> tuple[str, ...]:
    return ("plan", f"git+{place}", "--no-trace")


COMMANDS: dict[str, tuple[Sequence[str], dict[str, bytes], int, str]] = {
    "data-root": (
        ("run", "r.yaml"),
        {"r.yaml": recipe(data={"kind": "imagefolder"})},
        2,
        "data.root: required key missing, expected an image folder",
    ),
    "backend-file": (
        PLAN,
        {"r.yaml": recipe(report={"backends": ["sim:missing.yaml"]})},
        5,
        "'missing.yaml' cannot be read: No such file or directory",
    ),
    "set-without-value": ((*PLAN, "--set", "seed"), {"r.yaml": recipe()}, 2, "--set: got 'seed', expected KEY=VALUE"),
    "set-unknown": ((*PLAN, "--set", "sed=1"), {"r.yaml": recipe()}, 2, "sed: unknown key"),
    "set-position": (
        (*PLAN, "--set", "stages.7.export.opset=18"),
        {"r.yaml": recipe()},
        2,
        "stages.7: the list has no position '7'",
    ),
    "name-unknown": (("plan", "quikstart", "--no-trace"), {}, 2, "there is no recipe 'quikstart'"),
    "file-missing": (("plan", "nothing.yaml", "--no-trace"), {}, 2, "there is no recipe 'nothing.yaml'"),
    "zip-junk": (PLAN_ZIP, {"r.zip": b"junk"}, 5, "'r.zip' is damaged, or not a zip archive"),
    "zip-empty": (PLAN_ZIP, {"r.zip": zipped({})}, 5, "'r.zip' is not a packed recipe: it has no recipe.yaml"),
    "zip-up": (
        PLAN_ZIP,
        {"r.zip": zipped({"recipe.yaml": "a: 1", "../x": "b"})},
        5,
        "'r.zip' is refused: it is an archive with '..', '.' or an empty part in",
    ),
    "zip-bomb": (
        PLAN_ZIP,
        {"r.zip": zipped({"recipe.yaml": "a" * 30_000_000})},
        5,
        "'r.zip' is refused: it is an archive with a compression ratio above",
    ),
    "zip-absolute-path": (
        PLAN_ZIP,
        {
            "r.zip": zipped(
                {"recipe.yaml": recipe(model={"timm": "deit_tiny_patch16_224", "checkpoint": "/etc/passwd"}).decode()}
            )
        },
        2,
        "model.checkpoint: got '/etc/passwd', expected a path inside the archive",
    ),
    "git-branch": (
        git("https://host/r.git@main#r.yaml"),
        {},
        2,
        "got 'main', expected the hash of a commit: branches and tags can move",
    ),
    "git-no-commit": (
        git("https://host/r.git#r.yaml"),
        {},
        2,
        "got 'git+https://host/r.git#r.yaml' without a commit, expected",
    ),
    "git-protocol": (
        git("ext::sh@0123456789#r.yaml"),
        {},
        2,
        "got the URL 'ext::sh', expected https://, ssh:// or file:/// without a",
    ),
    "git-password": (
        git("https://a:b@host/r.git@0123456789#r.yaml"),
        {},
        2,
        "got the URL 'https://host/r.git', expected https://, ssh:// or file:///",
    ),
    "git-up": (
        git("https://host/r.git@0123456789#../r.yaml"),
        {},
        2,
        "got the path '../r.yaml', expected a YAML file of the repository",
    ),
    "git-missing": (git("file:///nowhere/r.git@0123456789#r.yaml"), {}, 5, "git cannot fetch"),
    "onnx-missing": (("bench", "m.onnx"), {}, 5, "'m.onnx' does not exist"),
    "onnx-empty": (("bench", "m.onnx"), {"m.onnx": b""}, 5, "'m.onnx' is empty"),
    "onnx-junk": (("bench", "m.onnx"), {"m.onnx": b"not onnx"}, 5, "'m.onnx' is not an ONNX file, or is truncated"),
    "onnx-zip": (
        ("inspect", "m.onnx"),
        {"m.onnx": zipped({"a": "b"})},
        5,
        "'m.onnx' is not an ONNX file, or is truncated",
    ),
    "onnx-folder": (("bench", "."), {}, 5, "expected an ONNX file, got the folder '.'"),
    "bench-none": (("bench",), {}, 2, "no files to measure"),
    "bench-batch": (
        ("bench", "m.onnx", "--batch", "0"),
        {},
        2,
        "Invalid value for '--batch': Input should be greater than or equal to 1",
    ),
    "bench-kwargs": (("bench", "m.onnx", "--kwargs", "a=1"), {}, 2, "--kwargs needs --table"),
    "bench-table-files": (
        ("bench", "m.onnx", "--table", "vit_tiny_patch16_224"),
        {},
        2,
        "FILE and --table cannot be combined",
    ),
    "bench-memory": (
        ("bench", "--table", "vit_tiny_patch16_224", "--memory"),
        {},
        2,
        "--memory, --profile and --tensorrt-log need ONNX files",
    ),
    "bench-log": (
        ("bench", "a.onnx", "b.onnx", "--tensorrt-log", "log"),
        {},
        2,
        "a log of TensorRT describes one file, got 2",
    ),
    "gemms-missing": (
        ("bench", "--gemms", "g.csv", "--backend", "sim:a100"),
        {},
        5,
        "'g.csv' cannot be read: No such file or directory",
    ),
    "gemms-header": (
        ("bench", "--gemms", "g.csv", "--backend", "sim:a100"),
        {"g.csv": b"a,b\n1,2\n"},
        2,
        "'g.csv' has no column M",
    ),
    "gemms-number": (
        ("bench", "--gemms", "g.csv", "--backend", "sim:a100"),
        {"g.csv": b"M,N,K,dtype,sparse,count\n1,x,2,FP16,0,1\n"},
        5,
        "line 2 of 'g.csv': N is 'x'",
    ),
    "workload-text": (
        ("bench", "--workload", "w.csv", "--backend", "sim:spatten"),
        {"w.csv": b"\xff\xff"},
        5,
        "'w.csv' is not a CSV file",
    ),
    "compare-missing": (("compare", "a", "b"), {}, 5, "'a' is not a result"),
    "compare-text": (("compare", "a.txt", "b.txt"), {"a.txt": b"x", "b.txt": b"x"}, 5, "'a.txt' is not a result"),
    "report-missing": (("report", "runs/none"), {}, 5, "'runs/none' is not a finished run: it has no manifest.json"),
    "report-junk": (
        ("report", "out"),
        {"out/report.json": b"junk", "out/manifest.json": b'{"files": {}}'},
        5,
        "the report is not valid JSON",
    ),
    "report-version": (
        ("compare", "r.json", "r.json"),
        {"r.json": b'{"schema_version": 1}'},
        5,
        "the report has schema version 1, this version of vitslim reads 3",
    ),
    "report-deep": (("compare", "r.json", "r.json"), {"r.json": b"[" * 100_000}, 5, "the report is not valid JSON"),
    "report-null": (
        ("compare", "r.json", "r.json"),
        {"r.json": b"null"},
        5,
        "the file is JSON, but not a vitslim report: it has no schema_version",
    ),
    "manifest-up": (
        ("report", "out"),
        {"out/manifest.json": b'{"files": {"../secret": "0"}}', "secret": b"x"},
        5,
        "names a file that cannot be in its folder",
    ),
    "manifest-long": (
        ("report", "out"),
        {"out/manifest.json": b'{"files": {"' + b"a" * 300 + b'": "0"}}'},
        5,
        "names a file that cannot be in its folder",
    ),
    "manifest-list": (("report", "out"), {"out/manifest.json": b"[]"}, 5, "'out/manifest.json' is corrupt"),
    "runs-missing": (("runs", "list", "nowhere"), {}, 5, "there is no folder 'nowhere'"),
    "runs-prune": (
        ("runs", "prune", "nowhere"),
        {},
        5,
        "'nowhere' has no stored stages: there is no folder 'nowhere.stages'",
    ),
    "describe-unknown": (("recipes", "describe", "ptqq"), {}, 2, "got 'ptqq', expected a method or a stage kind"),
    "show-unknown": (("recipes", "show", "quick"), {}, 2, "there is no recipe 'quick'"),
    "option-unknown": (("run", "quickstart", "--frsh"), {}, 2, "No such option: --frsh (Possible options: --fresh)"),
    "command-unknown": (("rnu",), {}, 2, "No such command 'rnu'. Did you mean 'run'?"),
    "format-unknown": (
        ("plan", "quickstart", "--format", "xml"),
        {},
        2,
        "Invalid value for '--format': Value error, 'xml' is not one of 'table',",
    ),
    "frozen-not-locked": (("run", "r.yaml", "--frozen"), {"r.yaml": recipe()}, 2, "'r.yaml' is not a lock file"),
}
"""Commands with their files, their exit code, and a part of the message."""

ROWS = {
    f"recipe-{name}": (PLAN, {"r.yaml": content}, 2, words) for name, (content, words) in RECIPES.items()
} | COMMANDS


@pytest.mark.parametrize(("command", "files", "code", "words"), ROWS.values(), ids=ROWS)
def test_a_bad_input_is_refused_in_one_sentence(
    vitslim: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Sequence[str],
    files: Mapping[str, bytes], code: int, words: str,
) -> None:  # fmt: skip
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    monkeypatch.chdir(tmp_path)
    outcome = vitslim(*command)
    assert outcome.code == code, outcome.err
    assert words in outcome.err
    assert outcome.out == ""
    assert outcome.err.startswith("error: ") and "Traceback" not in outcome.err
    assert not (tmp_path / "runs").exists()
