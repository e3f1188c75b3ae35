"""Annotation files of COCO's form, read as labels of whole images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ltcore.data.image_files import read_text
from ltcore.errors import DataError
from ltcore.untrusted import parse_json


def read_coco(path: Path) -> tuple[list[str], list[int], dict[int, str]]:
    """File names of N images, their category ids, and the names of categories by id; none where none are given.

    An image may have several annotations, as where objects are framed, if all are of one category.

    Raises:
        DataError: the file is no such JSON, or an image has no category, or two.
    """
    try:
        content: Any = parse_json(read_text(path))
        named = {image["id"]: str(image["file_name"]) for image in content["images"]}
        annotated = [(each["image_id"], int(each["category_id"])) for each in content["annotations"]]
        titles = {int(each["id"]): str(each["name"]) for each in content.get("categories", ())}
        unknown = [image for image, _ in annotated if image not in named]
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: this is no JSON ({error.msg}); fetch the file again") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} lacks images (id, file_name) or annotations (image_id, category_id), or has other kinds of values "
            f"({type(error).__name__}: {error}); write them, or fetch the file again"
        ) from error
    if unknown:
        raise DataError(f"{path}: an annotation is of image {unknown[0]}, which is not among its images")
    of_image: dict[Any, int] = {}
    for image, category in annotated:
        if of_image.get(image, category) != category:
            raise DataError(f"{path}: {named[image]} has annotations of two categories; an image has one class")
        of_image[image] = category
    if bare := [image for image in named if image not in of_image]:
        raise DataError(f"{path}: {len(bare)} images have no annotation, first {named[bare[0]]}")
    if not named:
        raise DataError(f"{path} has no images")
    return list(named.values()), [of_image[image] for image in named], titles
