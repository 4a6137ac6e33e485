"""Hugging Face datasets from a folder or the hub. Only tables of bytes are read; no code comes from a dataset."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NamedTuple

from vitslim.data.files.containers.shards import IMAGE_BYTES_MAX
from vitslim.data.files.image_list import EncodedImage, ImageLabels, ImageList, LabelKind
from vitslim.data.files.names import join_names, printable
from vitslim.data.files.row_labels import LabelError, are_indices, broken_entries, label_values, read_labels
from vitslim.data.files.splits import SPLITS, UNUSED
from vitslim.errors import InputError
from vitslim.recipe.schema import HUB

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = ("parquet", "arrow")
"""Formats of datasets that are read. Others decode files of any kind, or are not made for images."""
LAYOUT_HINT = (
    "name a folder of save_to_disk or of parquet files, or hub:ORG/NAME@REVISION; `kind: imagefolder` reads folders "
    "of image files"
)
COLUMN_HINT = "name the column of the label in data.label_field"


class TableImage(NamedTuple):
    """An image in a row of a dataset."""

    table: Dataset
    """A table with one column: the bytes and the path of each image."""
    shown: str
    row: int

    def __str__(self) -> str:
        return f"{self.shown}[{self.row}]"

    def open(self, mode: Literal["rb"]) -> BinaryIO:  # noqa: ARG002 - the only one
        """Return the bytes of the image. Raises OSError for a row without bytes, or with too many."""
        (value,) = self.table[self.row].values()
        content = value.get("bytes") if isinstance(value, dict) else None
        if content is None:
            raise OSError("the row holds no bytes; use `kind: imagefolder` for a folder of image files")
        if len(content) > IMAGE_BYTES_MAX:
            raise OSError(f"{len(content):,} bytes, at most {IMAGE_BYTES_MAX:,} are read")
        return io.BytesIO(content)


@dataclass(frozen=True)
class Table:
    """The images of one split; their names are the numbers of their rows."""

    table: Dataset = field(repr=False)
    shown: str

    @property
    def paths(self) -> list[Path]:
        """The Arrow files."""
        return [Path(file["filename"]) for file in self.table.cache_files]

    def file(self, name: str) -> EncodedImage:
        """Return the image of a row."""
        return TableImage(self.table, self.shown, int(name))


def list_dataset(root: str, class_names: Sequence[str] | None, label_field: str | None) -> dict[str, ImageList]:
    """Return the images of a dataset by split; those of `test` and of other splits are not read.

    root: a folder of `save_to_disk` or of parquet files, or `hub:ORG/NAME@REVISION`. Class labels keep the names and
    the order of the dataset; other labels are class names, or indices as in tables. label_field: the column of the
    label; by default `label` or `labels`, else the only column of class labels. Raises InputError for a dataset that
    cannot be read, without one column of images, with two columns of labels, and for rows without a label.
    """
    loaded = _load(root)
    named = {name: SPLITS.get(name.lower(), UNUSED) for name in loaded}
    unread = {f"split {name}": loaded[name].num_rows for name, split in named.items() if split == UNUSED}
    rows = {}
    for name, split in named.items():
        if split != UNUSED:
            if split in rows:
                raise InputError(f"{printable(root)} has two splits of the name {split}", "remove one of them")
            rows[split] = _Rows(loaded[name], f"{root}:{name}", label_field)
    as_indices = are_indices([labels for one in rows.values() for labels in one.labels], class_names or ())
    return {
        split: one.listed(root, as_indices, unread if position == 0 else {})
        for position, (split, one) in enumerate(sorted(rows.items()))
    }


class _Rows:
    """The images and labels of one split."""

    def __init__(self, dataset: Dataset, shown: str, label_field: str | None) -> None:
        from datasets import Image

        self.shown = shown
        column = _image_column(dataset, shown)
        self.images = dataset.select_columns([column]).cast_column(column, Image(decode=False))
        self.class_order, self.kind, self.labels = _labels(dataset, shown, label_field)

    def listed(self, root: str, as_indices: bool, unread: Mapping[str, int]) -> ImageList:
        """Return the images as a list; `unread` are the images of other splits."""
        if not self.images.num_rows:
            raise InputError(f"{printable(self.shown)} has no images", LAYOUT_HINT)
        files = tuple(map(str, range(self.images.num_rows)))
        labels = label_values(self.labels, as_indices and not self.class_order)
        container = Table(self.images, self.shown)
        return ImageList(
            Path(root), files, labels, self.kind, Path(root), dict(unread), container=container,
            class_order=self.class_order,
        )  # fmt: skip


def _load(root: str) -> dict[str, Dataset]:
    """Return the splits of a dataset. Raises InputError if it cannot be read."""
    import datasets

    with _without_bars():
        try:
            if root.startswith(HUB):
                name, _, revision = root.removeprefix(HUB).partition("@")
                return _prepared(f"hf://datasets/{name}", revision or None)
            folder = Path(root)
            if not folder.is_dir():
                problem = "is not a folder" if folder.exists() else "does not exist"
                raise InputError(f"{printable(root)} {problem}", LAYOUT_HINT)
            if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
                return _prepared(str(folder.resolve()), None)
            loaded = datasets.load_from_disk(str(folder))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(f"the dataset {printable(root)} cannot be read: {reason}", LAYOUT_HINT) from error
    found = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    _check_inside(folder, found)
    return found


def _prepared(name: str, revision: str | None) -> dict[str, Dataset]:
    """Return the splits of a folder of tables, or of a dataset of the hub, which is downloaded."""
    import datasets

    builder = datasets.load_dataset_builder(name, revision=revision)
    kind = type(builder).__module__.split(".")[-1]
    if kind not in BUILDERS:
        raise ValueError(f"it is of the kind {kind}, expected {' or '.join(BUILDERS)} files")
    builder.download_and_prepare()
    return dict(builder.as_dataset())


@contextmanager
def _without_bars() -> Iterator[None]:
    """Hide the progress bars of `datasets`, which would mix with those of vitslim."""
    import datasets

    shown = datasets.are_progress_bars_disabled() is False
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _check_inside(folder: Path, splits: Mapping[str, Dataset]) -> None:
    root = folder.resolve()
    for dataset in splits.values():
        outside = [one["filename"] for one in dataset.cache_files]
        outside = [name for name in outside if not Path(name).resolve().is_relative_to(root)]
        if outside:
            raise InputError(f"{printable(folder)} names files outside of it: {join_names(outside)}", LAYOUT_HINT)


def _image_column(dataset: Dataset, shown: str) -> str:
    from datasets import Image

    found = [name for name, feature in dataset.features.items() if isinstance(feature, Image) or _is_bytes(feature)]
    if len(found) != 1:
        problem = f"has several columns of images: {join_names(found)}" if found else "has no column of images"
        message = f"{printable(shown)} {problem}; its columns are {join_names(list(dataset.features))}"
        raise InputError(message, "keep one column of the type Image (Dataset.select_columns, Dataset.cast_column)")
    return str(found[0])


def _is_bytes(feature: Any) -> bool:
    return isinstance(feature, dict) and feature.keys() == {"bytes", "path"}


def _labels(
    dataset: Dataset, shown: str, label_field: str | None
) -> tuple[tuple[str, ...], LabelKind, list[ImageLabels]]:
    """Return the names of class labels in their order, the kind of the labels, and the labels of each row."""
    from datasets import ClassLabel

    column = _label_column(dataset, shown, label_field)
    if column is None:
        return (), "none", [()] * dataset.num_rows
    feature = dataset.features[column]
    inner = getattr(feature, "feature", feature)
    names = tuple(map(printable, inner.names)) if isinstance(inner, ClassLabel) else ()
    key = "label" if inner is feature else "labels"
    found: list[ImageLabels] = []
    broken = {}
    kind: LabelKind = "one" if inner is feature else "several"
    for row, value in enumerate(dataset[column]):
        try:
            _, labels = read_labels({key: value})
            found.append(tuple(names[int(label)] for label in labels) if names else labels)
        except LabelError as error:
            broken[f"row {row}"] = str(error)
        except IndexError:
            broken[f"row {row}"] = f"has a label above {len(names) - 1}"
    if broken:
        raise broken_entries(f"'{column}' of {shown}", "row", broken, COLUMN_HINT)
    return names, kind, found


def _label_column(dataset: Dataset, shown: str, label_field: str | None) -> str | None:
    from datasets import ClassLabel

    columns = list(dataset.features)
    if label_field is not None:
        if label_field not in columns:
            message = f"{printable(shown)} has no column '{printable(label_field)}', got {join_names(columns)}"
            raise InputError(message, COLUMN_HINT)
        return label_field
    named = [name for name in ("label", "labels") if name in columns]
    found = named or [
        name
        for name, feature in dataset.features.items()
        if isinstance(getattr(feature, "feature", feature), ClassLabel)
    ]
    if len(found) > 1:
        raise InputError(f"{printable(shown)} has two columns of labels: {join_names(found)}", COLUMN_HINT)
    return found[0] if found else None
