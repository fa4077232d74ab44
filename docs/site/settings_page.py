"""The reference of the settings: one table per pydantic-settings class."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from atlas_attention.settings import AttentionSettings
from atlas_core.pacs import PacsSettings
from atlas_embedded.settings import EmbeddedSettings
from atlas_flows.settings import FlowSettings
from atlas_review.settings import ReviewSettings
from pydantic import SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings

SECTIONS: dict[str, tuple[type[BaseSettings], str]] = {
    "Attention service": (AttentionSettings, "Read by `python -m atlas_attention`."),
    "Review service": (ReviewSettings, "Read by `python -m atlas_review`."),
    "Commands and flows": (
        FlowSettings,
        "Read by `atlasloop` and by flow runs. What is empty is that of the embedded stack.",
    ),
    "PACS": (
        PacsSettings,
        "Read by `atlasloop pacs` and the flows `pull` and `push`.",
    ),
    "Embedded stack": (
        EmbeddedSettings,
        "Read by `atlasloop up` and by whatever speaks to the stack of this machine; also from "
        "`config.toml` in the home folder, where the environment wins.",
    ),
}

INTRODUCTION = """\
# Settings

Each process reads one class of settings from environment variables when it starts, and refuses a
value that does not fit. In our images a variable `NAME` may also be given as `NAME__FILE`, the path
of a file with the value (a mounted secret). The chart's `values.yaml` and the compose file set the
same variables.
"""


def markdown() -> str:
    """One section per class, one row per field."""
    return INTRODUCTION + "".join(
        f"\n## {title}\n\n{note}\n\n{_table(settings)}"
        for title, (settings, note) in SECTIONS.items()
    )


def _table(settings: type[BaseSettings]) -> str:
    prefix = settings.model_config["env_prefix"]
    rows = ["| variable | type | default | what it sets |", "|---|---|---|---|"]
    for name, field in settings.model_fields.items():
        cells = (
            f"`{prefix}{name.upper()}`",
            _type_name(field.annotation) + _bounds(field),
            _default(field),
            field.description or name.replace("_", " "),
        )
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def _type_name(annotation: Any) -> str:
    """A type as a person writes its values: `int`, `text`, `path`, or the values themselves."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type_name(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" if value != "" else "empty" for value in arguments)
    if origin in (Union, types.UnionType):
        return ", ".join(_type_name(one) for one in arguments if one is not type(None))
    if origin in (tuple, list):
        return f"JSON list of {_type_name(arguments[0])}"
    if origin is dict:
        return "JSON object"
    if annotation in (str, SecretStr):
        return "text" if annotation is str else "secret text"
    if inspect.isclass(annotation) and issubclass(annotation, Path):
        return "path"
    if annotation in (int, float, bool):
        return str(annotation.__name__)
    return "JSON object"


def _bounds(field: FieldInfo) -> str:
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "min_length": "length ≥"}
    found = [
        f"{sign} {getattr(constraint, name)}"
        for constraint in field.metadata
        for name, sign in signs.items()
        if getattr(constraint, name, None) is not None
    ]
    return f" ({', '.join(found)})" if found else ""


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory_takes_validated_data:
        return "in the home folder"
    value = field.get_default(call_default_factory=True)
    if value is None or value in ("", {}):
        return "–"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, tuple):
        value = ", ".join(map(str, value))
    text = str(value)
    root = str(Path(__file__).resolve().parents[2])
    return f"`{text.removeprefix(root + '/')}`" if len(text) <= 100 else "built in"
