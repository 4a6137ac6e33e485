"""Recipes in git repositories: `git+URL@COMMIT#PATH`.

The files beside the recipe are copied from the commit into the user's cache; later loads need no network. Nothing is
checked out: links, submodules and hooks have no effect.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from vitslim.errors import InputError, UsageError
from vitslim.recipe.document.check import shown
from vitslim.recipe.sources.cache_folder import MAX_BYTES, MAX_ENTRIES, cache_folder, filling, kept, name_problem

PREFIX = "git+"
FORM = "git+URL@COMMIT#PATH"
SECONDS = 600
"""Time limit of a fetch."""
SETTINGS = (
    "protocol.allow=never", "protocol.https.allow=always", "protocol.ssh.allow=always", "protocol.file.allow=always",
    f"core.hooksPath={os.devnull}", "core.fsmonitor=false", "submodule.recurse=false", "fetch.recurseSubmodules=false",
    "maintenance.auto=false", "gc.auto=0",
)  # fmt: skip
INHERITED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
             "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_ALLOW_PROTOCOL")  # fmt: skip
"""Variables of another repository, or of another protocol list, that are not passed on."""

_URL = re.compile(r"(https|ssh)://([\w.~+-]+@)?[\w\[][^\s@]*|file:///\S+")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_FULL = (40, 64)
_LISTING_BYTES = MAX_ENTRIES * 1000
_EVERYTHING = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
_FILES = {b"100644", b"100755"}


@dataclass(frozen=True)
class Pinned:
    """A file of a commit."""

    url: str
    commit: str
    """Full or abbreviated hash, in lower case."""
    path: str

    @property
    def folder(self) -> str:
        """Folder of the file in the repository; `.` for the root."""
        return str(PurePosixPath(self.path).parent)


def parse_pinned(text: str) -> Pinned:
    """Parse `git+URL@COMMIT#PATH`.

    Raises UsageError for another form, a protocol other than https, ssh and file, a password in the URL, a branch or
    tag in place of the commit, and a path that leaves the repository.
    """
    if not text.isprintable():
        raise UsageError(f"got {shown(text)}, expected {FORM}", "remove spaces and control characters")
    location, _, path = text.partition("+")[2].partition("#")
    url, _, commit = location.rpartition("@")
    if not url or "/" in commit:
        hint = f"`git ls-remote {shlex.quote(_masked(location))}` prints the commit of each branch"
        raise UsageError(f"got '{_masked(text)}' without a commit, expected {FORM}", hint)
    if not _URL.fullmatch(url):
        message = f"got the URL '{_masked(url)}', expected https://, ssh:// or file:/// without a password"
        raise UsageError(message, f"write {FORM}; a password belongs in the credential store of git")
    if not _COMMIT.fullmatch(commit.lower()):
        hint = f"`git ls-remote {shlex.quote(url)} {shlex.quote(commit)}` prints its commit"
        raise UsageError(f"got '{commit[:80]}', expected the hash of a commit: branches and tags can move", hint)
    if name_problem(path) or PurePosixPath(path).suffix not in {".yaml", ".yml"}:
        raise UsageError(f"got the path '{path[:200]}', expected a YAML file of the repository", f"write {FORM}")
    return Pinned(url, commit.lower(), path)


def fetch(pinned: Pinned) -> Path:
    """Return a folder of the user's cache with the files of `pinned.folder`; it is fetched if it is not there yet.

    Links, submodules and files with unusual names are left out. Raises InputError if git is missing, the repository
    cannot be fetched, it has no such commit or folder, or the folder exceeds a limit of count or size.
    """
    key = hashlib.sha256(f"{pinned.url}\n{pinned.folder}".encode()).hexdigest()[:16]
    parent = cache_folder() / "git" / key
    try:
        if found := _kept(parent, pinned):
            return found
        with filling(parent):
            if found := _kept(parent, pinned):
                return found
            with tempfile.TemporaryDirectory(prefix="vitslim-git-") as scratch:
                repository = Path(scratch)
                commit = _fetch_commit(repository, pinned)
                with kept(parent / commit) as folder:
                    _copy_files(repository, commit, pinned, folder)
    except OSError as error:
        message = f"a temporary folder cannot be written: {error.strerror}"
        raise InputError(message, "free space, or set TMPDIR") from error
    return parent / commit


def _kept(parent: Path, pinned: Pinned) -> Path | None:
    """Return the folder of the commit; None if it was not fetched, or an abbreviated hash fits several."""
    found = [folder for folder in parent.glob(f"{pinned.commit}*") if folder.is_dir()]
    return found[0] if len(found) == 1 else None


def _fetch_commit(repository: Path, pinned: Pinned) -> str:
    """Fetch the commit, or all branches and tags if it is abbreviated or not served alone; return its full hash."""
    _git(repository, "init", "--quiet", "--bare", "--template=", "--", str(repository))
    options = ("fetch", "--quiet", "--no-tags", "--no-recurse-submodules")
    done = None
    if len(pinned.commit) in _FULL:
        done = _git(repository, *options, "--depth=1", "--", pinned.url, pinned.commit)
    if done is None or done.returncode:
        done = _git(repository, *options, "--", pinned.url, *_EVERYTHING)
    if done.returncode:
        hint = "check the URL, the network and your access; `git ls-remote URL` must work"
        raise InputError(f"git cannot fetch '{pinned.url}': {_reason(done.stderr)}", hint)
    found = _git(repository, "rev-parse", "--verify", "--quiet", f"{pinned.commit}^{{commit}}")
    commit = found.stdout.decode("ascii", "replace").strip()
    if found.returncode or not commit.startswith(pinned.commit):
        hint = f"`git ls-remote {shlex.quote(pinned.url)}` prints the commit of each branch; or write the full hash"
        raise InputError(f"'{pinned.url}' has no commit '{pinned.commit}', or several that begin so", hint)
    return commit


def _copy_files(repository: Path, commit: str, pinned: Pinned, target: Path) -> None:
    tree = commit if pinned.folder == "." else f"{commit}:{pinned.folder}"
    names: dict[str, bytes] = {}
    total = 0
    for entry in _listing(repository, tree, pinned):
        facts, _, raw = entry.partition(b"\t")
        mode, _, digest, size = facts.split()
        name = raw.decode("utf-8", "replace")
        if mode in _FILES and not name_problem(name):
            names[name] = digest
            total += int(size)
    if len(names) > MAX_ENTRIES or total > MAX_BYTES:
        raise _too_large(pinned)
    with tempfile.TemporaryFile() as wanted:
        wanted.write(b"\n".join([*names.values(), b""]))
        wanted.seek(0)
        with subprocess.Popen(
            _command(repository, "cat-file", "--batch"), env=_environment(), stdin=wanted,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for name in names:
                _copy(process.stdout, target / name)


def _copy(source: IO[bytes], target: Path) -> None:
    """Write the next object of `git cat-file --batch`: a line `HASH blob SIZE`, the content, and a newline."""
    header = source.readline().split()
    left = int(header[2]) if len(header) == 3 else -1
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        while left > 0 and (part := source.read(min(left, 1 << 20))):
            left -= file.write(part)
    source.read(1)
    if left:
        raise InputError(f"git cannot read the content of '{target.name}'", "is the repository damaged?")


def _listing(repository: Path, tree: str, pinned: Pinned) -> list[bytes]:
    """Return the lines `MODE TYPE HASH SIZE<tab>NAME` of all files below a tree, read up to a limit."""
    with subprocess.Popen(
        _command(repository, "ls-tree", "-r", "-l", "-z", tree), env=_environment(), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        listing = process.stdout.read(_LISTING_BYTES + 1)
        if len(listing) > _LISTING_BYTES:
            process.kill()
            raise _too_large(pinned)
    if process.returncode or not listing:
        raise InputError(f"commit {pinned.commit} has no folder '{pinned.folder}'", "check the path after '#'")
    return listing.split(b"\0")[:-1]


def _too_large(pinned: Pinned) -> InputError:
    message = f"the folder '{pinned.folder}' has more than {MAX_ENTRIES} files or {MAX_BYTES / 1e9:g} GB"
    return InputError(message, "keep shared recipes in a folder of their own")


def _git(repository: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    command = _command(repository, *arguments)
    try:
        return subprocess.run(
            command, env=_environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False
        )
    except OSError as error:
        raise InputError("git is not installed, or not on PATH", "install git, or download the recipe") from error
    except subprocess.TimeoutExpired as error:
        raise InputError(f"git did not end after {SECONDS} seconds", "check the network") from error


def _command(repository: Path, *arguments: str) -> Sequence[str]:
    settings = [part for setting in SETTINGS for part in ("-c", setting)]
    return ["git", *settings, f"--git-dir={repository}", *arguments]


def _environment() -> dict[str, str]:
    """Return the environment without variables that point git to another repository; git never asks for a password."""
    return {key: value for key, value in os.environ.items() if key not in INHERITED} | {"GIT_TERMINAL_PROMPT": "0"}


def _reason(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
    reason = next((line for line in lines if line.startswith("fatal:")), lines[-1])
    return "".join(filter(str.isprintable, reason[:300]))


def _masked(url: str) -> str:
    """Return a URL without user and password, for messages."""
    return re.sub(r"//[^/]*@", "//", url[:200])
