"""Class indices of the labels that folders and tables give."""

from __future__ import annotations

from collections.abc import Sequence

from vitslim.data.batches import Labels
from vitslim.data.classes import WORDNET_ID, ClassMap, class_list, map_classes
from vitslim.data.dataset import UNLABELED
from vitslim.data.files.image_list import ImageList
from vitslim.data.files.names import join_names, printable
from vitslim.errors import InputError


def map_labels(lists: Sequence[ImageList], classes: int, order: str | Sequence[str] | None) -> ClassMap:
    """Return the map from class names to the outputs of a model with `classes` classes.

    The first list with labels decides, which is that of the training images if they have labels. Class labels whose
    order the data set states keep it, unless they are WordNet ids or `order` is given. Without labels the map is empty.
    A model without a classifier (0 classes) takes any classes. order: as in `map_classes`, whose InputErrors it raises.
    """
    labeled = next((images for images in lists if images.kind != "none"), None)
    names = class_list(order)
    if labeled is None:
        return ClassMap({}, names or ())
    if labeled.class_order and order is None and not all(map(WORDNET_ID.fullmatch, labeled.class_order)):
        return _stated_order(labeled, classes)
    if labeled.classes:
        return map_classes(labeled.source, labeled.classes, classes, order)
    # The labels of a feature extractor, which has no classes, only have to differ.
    classes = classes or 1 + max(
        one for images in lists for labels in images.labels for one in labels if isinstance(one, int)
    )
    if names is not None and len(names) != classes:
        hint = "name the folder of each output once"
        raise InputError(f"data.classes lists {len(names)} names, the model has {classes} classes", hint)
    rule = f"the indices of {printable(labeled.source.name)}, counted from 0"
    return ClassMap({}, names or tuple(map(str, range(classes))), rule)


def _stated_order(images: ImageList, classes: int) -> ClassMap:
    """Return the class indices that the data set states. Raises InputError if the model has another number of them."""
    names = images.class_order
    if classes not in (0, len(names)):
        message = f"{images.shown} has {len(names)} classes, the model has {classes} classes"
        raise InputError(message, "name the class of each output in data.classes, or set model.kwargs.num_classes")
    index = {name: position for position, name in enumerate(names)}
    return ClassMap(index, names, f"the class labels of {printable(images.source.name)}: {join_names(names)}")


def label_indices(images: ImageList, class_map: ClassMap) -> Labels:
    """Return the class index of each image, a tuple of indices for images of several classes, or `UNLABELED`.

    Raises InputError for class names that `class_map` lacks, and for indices of no class.
    """
    if images.kind == "none":
        return (UNLABELED,) * len(images.files)
    unknown = [name for name in images.classes if name not in class_map.index]
    if unknown:
        hint = f"name the classes as the training images do, such as {join_names(sorted(class_map.index))}"
        if not class_map.index:
            hint = "give all sets class names, or all of them indices"
        raise InputError(f"{images.shown} has labels that are no classes of the model: {join_names(unknown)}", hint)
    count = len(class_map.names)
    distinct = set(images.labels)
    above = {labels for labels in distinct if any(isinstance(one, int) and one >= count for one in labels)}
    if above:
        outside = [position for position, labels in enumerate(images.labels) if labels in above]
        where = [f"line {images.lines[one]}" if images.lines else images.files[one] for one in outside]
        message = f"{images.shown} has class indices above {count - 1}: {join_names(where)}"
        raise InputError(message, "indices count from 0; name the classes in data.classes if the labels are names")
    rows = {
        labels: tuple(one if isinstance(one, int) else class_map.index[one] for one in labels) for labels in distinct
    }
    if images.kind == "several":
        return tuple(rows[labels] for labels in images.labels)
    indices = {labels: row[0] for labels, row in rows.items()}
    return tuple(indices[labels] for labels in images.labels)
