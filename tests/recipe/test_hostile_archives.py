"""Archives that may be hostile: names, links, sizes, damage."""

from __future__ import annotations

import contextlib
import io
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZipFile, ZipInfo

import pytest
from archives import PLAIN, zipped
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vitslim.errors import InputError, VitslimError
from vitslim.recipe.sources import zip_archive
from vitslim.recipe.sources.zip_archive import unpack

Write = Callable[..., Path]


def with_entry(folder: Path, entry: ZipInfo, content: bytes = b"x") -> Path:
    path = zipped(folder, {"recipe.yaml": PLAIN})
    with ZipFile(path, "a") as archive:
        archive.writestr(entry, content)
    return path


def link(name: str) -> ZipInfo:
    entry = ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    return entry


class TestHostileArchives:
    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("../evil.yaml", "'..'"),
            ("a/../../evil.yaml", "'..'"),
            ("/evil.yaml", "absolute"),
            ("C:/evil.yaml", "absolute"),
            ("a\\..\\evil.yaml", "backslash"),
            ("./a.yaml", "'.'"),
            ("a//b.yaml", "empty part"),
            ("a/b/c/d/e/f/g/h/i.yaml", "more than 8 parts"),
            ("x" * 300, "more than 200 characters"),
            ("a\x1b[2Jb", "control character"),
            ("", "empty part"),
            ("/", "empty part"),
            ("recipe.yaml", "twice"),
            ("RECIPE.yaml", "twice"),
            ("recipe.yaml/inner", "twice"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_names_that_leave_the_folder_are_refused(
        self, cache: Path, tmp_path: Path, name: str, message: str
    ) -> None:
        entry = ZipInfo("x")
        entry.filename = name
        with pytest.raises(InputError) as caught:
            unpack(with_entry(tmp_path, entry))
        assert message in caught.value.message
        assert caught.value.hint
        assert not list(cache.rglob("*.yaml"))

    def test_links_are_refused(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="a link or a special file: 'passwd'"):
            unpack(with_entry(tmp_path, link("passwd"), b"/etc/passwd"))

    def test_a_decompression_bomb_is_refused(self, cache: Path, tmp_path: Path) -> None:
        bomb = zipped(tmp_path, {"recipe.yaml": PLAIN, "big.txt": "0" * 20_000_000}, ZIP_DEFLATED)
        with pytest.raises(InputError, match="a compression ratio above 100"):
            unpack(bomb)

    def test_many_small_bombs_are_refused(self, cache: Path, tmp_path: Path) -> None:
        bombs = {f"{number}.txt": "0" * 900_000 for number in range(20)}
        with pytest.raises(InputError, match="a compression ratio above 100"):
            unpack(zipped(tmp_path, {"recipe.yaml": PLAIN} | bombs, ZIP_DEFLATED))

    def test_a_second_name_in_an_extra_field_is_refused_or_ignored(self, cache: Path, tmp_path: Path) -> None:
        entry, name = ZipInfo("plain.txt"), b"../evil.txt"
        field = b"\x01" + zlib.crc32(b"plain.txt").to_bytes(4, "little") + name
        entry.extra = (0x7075).to_bytes(2, "little") + len(field).to_bytes(2, "little") + field
        with contextlib.suppress(InputError):
            assert (unpack(with_entry(tmp_path, entry)) / "plain.txt").read_bytes() == b"x"
        assert not list(tmp_path.rglob("evil.txt"))

    def test_a_size_that_is_not_true_is_refused(self, cache: Path, tmp_path: Path) -> None:
        data = bytearray(zipped(tmp_path, {"recipe.yaml": "x" * 5000}, ZIP_DEFLATED).read_bytes())
        place = data.rfind(b"PK\1\2") + 24
        data[place : place + 4] = (100).to_bytes(4, "little")
        (tmp_path / "hostile.zip").write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            unpack(tmp_path / "hostile.zip")

    def test_limits_of_count_and_size(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        archive = zipped(tmp_path, {"recipe.yaml": PLAIN, "b": "x" * 500, "c": "x"})
        for name, limit, message in (
            ("MAX_ENTRIES", 2, "more than 2 entries"), ("MAX_BYTES", 400, "GB when it is unpacked"),
            ("DIRECTORY_BYTES", 60, "entries"),
        ):  # fmt: skip
            with monkeypatch.context() as patch:
                patch.setattr(zip_archive, name, limit)
                with pytest.raises(InputError, match=message):
                    unpack(archive)

    def test_unusual_archives_are_refused(self, cache: Path, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="is not a packed recipe"):
            unpack(zipped(tmp_path, {"other.yaml": PLAIN}))
        with pytest.raises(InputError, match="unusual compression"):
            unpack(zipped(tmp_path, {"recipe.yaml": PLAIN}, ZIP_BZIP2))
        encrypted = bytearray(zipped(tmp_path, {"recipe.yaml": PLAIN}).read_bytes())
        encrypted[encrypted.rfind(b"PK\1\2") + 8] |= 1
        (tmp_path / "hostile.zip").write_bytes(encrypted)
        with pytest.raises(InputError, match="an encrypted entry"):
            unpack(tmp_path / "hostile.zip")

    def test_an_archive_of_the_form_zip64_is_refused(self, cache: Path, tmp_path: Path) -> None:
        data = zipped(tmp_path, {"recipe.yaml": PLAIN}).read_bytes()
        end = data.rfind(b"PK\5\6")
        (tmp_path / "hostile.zip").write_bytes(data[:end] + b"PK\6\7" + bytes(16) + data[end:])
        with pytest.raises(InputError, match="ZIP64"):
            unpack(tmp_path / "hostile.zip")

    @pytest.mark.parametrize("content", [b"", b"PK", b"PK\5\6", b"not a zip", b"PK\5\6" + bytes(18)])
    def test_damaged_archives_are_refused(self, cache: Path, write: Write, content: bytes) -> None:
        with pytest.raises(InputError):
            unpack(write("a.zip", content))

    def test_a_failed_extraction_leaves_nothing(self, cache: Path, tmp_path: Path) -> None:
        data = bytearray(zipped(tmp_path, {"a.txt": "first", "recipe.yaml": PLAIN}).read_bytes())
        data[data.find(b"name: plain")] ^= 1
        (tmp_path / "hostile.zip").write_bytes(data)
        with pytest.raises(InputError, match="damaged"):
            unpack(tmp_path / "hostile.zip")
        assert not [path for path in cache.rglob("*") if path.is_file()]

    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(data=st.data())
    def test_changed_bytes_never_crash_the_reader(self, cache: Path, tmp_path: Path, data: st.DataObject) -> None:
        buffer = io.BytesIO()
        with ZipFile(buffer, "w", ZIP_DEFLATED) as archive:
            for name, text in (("recipe.yaml", PLAIN), ("a/classes.txt", "cat\ndog\n" * 20)):
                archive.writestr(ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text, ZIP_DEFLATED)
        content = bytearray(buffer.getvalue())
        positions = st.integers(0, len(content) - 1)
        for place, byte in data.draw(st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=6)):
            content[place] = byte
        length = data.draw(st.one_of(st.just(len(content)), positions))
        (tmp_path / "fuzz.zip").write_bytes(content[:length])
        try:
            folder = unpack(tmp_path / "fuzz.zip")
        except VitslimError as error:
            assert error.hint
        else:
            assert folder.is_relative_to(cache)
