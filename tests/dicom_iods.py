"""Does an object have what its definition in the standard asks for? By the tables of PS3.3 that
highdicom ships: mandatory modules, attributes of type 1 (with a value) and 2 (present), nested."""

from __future__ import annotations

import json
import pkgutil
from typing import Any

from pydicom import Dataset
from pydicom.datadict import keyword_for_tag


def _table(name: str) -> Any:
    content = pkgutil.get_data("highdicom", f"_standard/{name}.json")
    assert content is not None
    return json.loads(content)


_IODS, _MODULES, _ATTRIBUTES = (
    _table(name) for name in ("sop_class_iod_map", "iod_module_map", "module_attribute_map")
)


CHOICES = ("multi-frame-functional-groups", "sr-document-content")
"""Modules whose attributes are each other's alternatives: groups and content items."""


def problems(dataset: Dataset) -> list[str]:
    """What `dataset` lacks; empty if nothing."""
    return [
        f"{module['key']}: {'.'.join([*attribute['path'], attribute['keyword']])}"
        for module in _MODULES[_IODS[dataset.SOPClassUID]]
        if module["usage"] == "M" and not module["key"].endswith(CHOICES)
        for attribute in _ATTRIBUTES[module["key"]]
        for item in _items(dataset, attribute["path"])
        if not _has(item, attribute)
    ]


def _items(dataset: Dataset, path: list[str]) -> list[Dataset]:
    """The items of the sequences along `path` that are there."""
    found = [dataset]
    for keyword in path:
        found = [item for one in found for item in one.get(keyword) or ()]
    return found


def _has(item: Dataset, attribute: dict[str, Any]) -> bool:
    if attribute["type"] == "1":
        return bool(item.get(attribute["keyword"]) not in (None, "", []))
    return attribute["type"] != "2" or attribute["keyword"] in item


def unknown_tags(dataset: Dataset) -> list[str]:
    """Elements that no dictionary knows, at any depth."""
    return [str(element.tag) for element in dataset.iterall() if not keyword_for_tag(element.tag)]
