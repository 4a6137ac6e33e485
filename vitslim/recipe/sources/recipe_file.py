"""The file of a recipe, found by a packaged name, a path, a zip archive or a commit of a git repository."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from vitslim.errors import Problem, UsageError, closest
from vitslim.recipe.catalog import SUFFIXES, packaged_names, packaged_path
from vitslim.recipe.document.check import shown
from vitslim.recipe.sources.document_paths import NamedPath

GIT = "git+"
"""Prefix of a recipe in a git repository."""
ARCHIVE = ".zip"
EXPECTED = "give a packaged name, a YAML file, a zip that `vitslim recipes pack` wrote, or git+URL@COMMIT#PATH"


@dataclass(frozen=True)
class RecipeFile:
    """A recipe file on disk, and the folder that its paths cannot leave."""

    path: Path
    root: Path | None = None
    """The files of the archive or repository; None for a recipe of the user, whose paths may point anywhere."""

    def located(self, name: str) -> Path:
        """Return a path that the recipe names, relative to its folder. `~/` is the home folder of the user.

        Raises UsageError if the path leaves `root`.
        """
        if self.root is None:
            return Path(name).expanduser() if name.startswith("~/") else self.path.parent / name
        is_absolute = name.startswith("~") or PureWindowsPath(name).anchor
        if is_absolute or "\\" in name or not name.isprintable() or ".." in PurePosixPath(name).parts:
            raise _outside(name)
        path = self.path.parent / name
        try:
            is_inside = path.resolve().is_relative_to(self.root.resolve())
        except (OSError, ValueError, RuntimeError):  # a name that is no path, or links in a circle
            is_inside = False
        if not is_inside:
            raise _outside(name)
        return path

    def rebase(self, named: NamedPath, problems: list[Problem]) -> str:
        """Return a path of the recipe as `located` does; append a problem if it leaves `root`."""
        try:
            return str(self.located(named.path))
        except UsageError as error:
            problems.append(Problem(named.where, error.message, error.hint))
            return named.path


def find_recipe(name: str, beside: RecipeFile | None = None) -> RecipeFile:
    """Return the file of `quickstart`, `base/imagenet`, `FILE.yaml`, `FILE.zip` or `git+URL@COMMIT#PATH`.

    beside: the recipe that extends this one; paths are relative to it. If it comes from an archive or a repository, so
    does the result, unless it is a packaged recipe.
    Raises UsageError, naming the closest recipe, when there is no such file; InputError for an archive or a repository
    that cannot be read.
    """
    packaged = packaged_path(name)
    if packaged is not None:
        return RecipeFile(packaged)
    is_shared = beside is not None and beside.root is not None
    if is_shared and (name.startswith(GIT) or name.lower().endswith(ARCHIVE)):
        message = f"got {shown(name)}: a recipe from an archive or a repository cannot name another one"
        raise UsageError(message, "name a packaged recipe, or a file of the same archive or repository")
    if name.startswith(GIT):
        return _from_git(name)
    path = _existing(name, Path(name) if beside is None else beside.located(name))
    if path.suffix.lower() == ARCHIVE:
        return _from_archive(path)
    return RecipeFile(path, beside.root if beside else None)


def _from_git(name: str) -> RecipeFile:
    from vitslim.recipe.sources.git_repository import fetch, parse_pinned

    pinned = parse_pinned(name)
    folder = fetch(pinned)
    path = folder / PurePosixPath(pinned.path).name
    if not path.is_file():
        names = [file.name for file in folder.iterdir() if file.suffix in SUFFIXES]
        message = f"commit {pinned.commit} has no file '{pinned.path}'"
        raise UsageError(message, closest(path.name, names) if names else "check the path after '#'")
    return RecipeFile(path, folder)


def _from_archive(path: Path) -> RecipeFile:
    from vitslim.recipe.sources.zip_archive import MAIN, unpack

    folder = unpack(path)
    return RecipeFile(folder / MAIN, folder)


def _existing(name: str, path: Path) -> Path:
    try:
        if path.is_file():
            return path
        is_folder = path.is_dir()
    except (OSError, ValueError) as error:
        raise UsageError(f"'{name[:200]}' is not a usable file name", EXPECTED) from error
    if is_folder:
        raise UsageError(f"'{name}' is a folder, not a recipe", EXPECTED)
    raise UsageError(f"there is no recipe '{name}'", closest(Path(name).name, _neighbors(path)))


def _neighbors(path: Path) -> list[str]:
    names = packaged_names()
    if path.suffix in (*SUFFIXES, ARCHIVE) and path.parent.is_dir():
        names += [file.name for file in path.parent.iterdir() if file.suffix in (*SUFFIXES, ARCHIVE)]
    return names


def _outside(name: str) -> UsageError:
    message = f"got {shown(name)}, expected a path inside the archive or repository of the recipe, without `..`"
    return UsageError(message, "give other paths on the command line, such as --data DIR or --checkpoint FILE")
