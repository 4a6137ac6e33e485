"""The outputs of a model are tied to class folders by an explicit rule, never by a guess."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from vitslim.data import load_data
from vitslim.data.classes import is_ambiguous, map_classes
from vitslim.errors import InputError
from vitslim.graph.model_graph import ModelSource
from vitslim.recipe.schema import Data

NUMBERS = tuple(str(number) for number in range(1, 13))
ROOT = Path("images")


def test_numbers_are_in_the_order_that_is_named() -> None:
    by_number = map_classes(ROOT, NUMBERS, 12, "timm")
    assert [by_number.index[name] for name in ("1", "2", "10", "12")] == [0, 1, 9, 11]
    by_character = map_classes(ROOT, NUMBERS, 12, "torchvision")
    assert [by_character.index[name] for name in ("1", "10", "11", "12", "2")] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("folders", [NUMBERS, ("Faces", "ant", "bee")])
def test_orders_that_differ_are_refused_without_a_key(folders: tuple[str, ...]) -> None:
    assert is_ambiguous(folders, len(folders))
    with pytest.raises(InputError, match="differently") as error:
        map_classes(ROOT, folders, len(folders))
    assert "data.classes to timm or torchvision" in error.value.hint


def test_orders_that_agree_need_no_key() -> None:
    assert map_classes(ROOT, ("01", "02", "10"), 3).index == {"01": 0, "02": 1, "10": 2}


def test_four_of_six_classes_need_the_list_of_all() -> None:
    names = ("f", "e", "d", "c", "b", "a")
    with pytest.raises(InputError, match="4 class folders, the model has 6 classes") as error:
        map_classes(ROOT, names[:4], 6)
    assert "data.classes" in error.value.hint
    found = map_classes(ROOT, names[:4], 6, names)
    assert (found.index["f"], found.index["c"], found.names) == (0, 3, names)
    for wrong, word in ((names[:5], "lists 5 names"), ((*names[:5], "f"), "twice"), ((*"uvwxyz",), "does not list: f")):
        with pytest.raises(InputError, match=word):
            map_classes(ROOT, names[:4], 6, wrong)


def test_a_file_lists_the_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("bee\nant\n\n", encoding="utf-8")
    assert map_classes(ROOT, ("ant", "bee"), 2, str(tmp_path / "classes.txt")).index == {"bee": 0, "ant": 1}
    with pytest.raises(InputError, match="class list 'absent"):
        map_classes(ROOT, ("ant", "bee"), 2, "absent.txt")


def test_wordnet_folders_of_a_model_of_imagenet_21k() -> None:
    info = ImageNetInfo("imagenet-21k-goog")
    names = info.label_names()
    found = map_classes(ROOT, (names[21000], names[7]), len(names))
    assert found.index[names[21000]] == 21000 and len(found.names) == len(names)


def test_folders_inside_class_folders_are_refused(
    image_root: Path, folder_source: ModelSource, write_images: Callable[..., None]
) -> None:
    write_images(image_root / "train" / "apple" / "green", 2)
    with pytest.raises(InputError, match="inside class folders: apple/green") as error:
        load_data(Data(kind="imagefolder", root=str(image_root)), folder_source, 0)
    assert "move their images up" in error.value.hint


def test_the_labels_of_a_data_set_follow_the_key(image_root: Path, folder_source: ModelSource) -> None:
    config = Data(kind="imagefolder", root=str(image_root), classes=("cheese", "durian", "bread", "apple"))
    val = load_data(config, replace(folder_source, classes=4), 0).val
    assert val.labels == (3, 3, 3, 2, 2, 2, 0, 0, 0)
    assert val.class_names == ("cheese", "durian", "bread", "apple")
