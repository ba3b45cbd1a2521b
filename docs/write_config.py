"""Fill the tables of docs/config.md from the settings themselves: `python docs/write_config.py`. A test compares."""

from __future__ import annotations

import re
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from saywhy.config import basis, labelling, reasonings, settings, written

PAGE = Path(__file__).with_name("config.md")
TABLE = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
NAMES = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`", dict: "mapping", tuple: "list"}


def filled(page: str) -> str:
    """Give the page with every table written anew; what stands outside of the marks is left as it is."""
    return TABLE.sub(lambda mark: mark[1] + table(section(mark[2])) + mark[3], page)


def marked(page: str) -> list[str]:
    """List the settings that have a table on the page."""
    return [mark[2] for mark in TABLE.finditer(page)]


def section(name: str) -> type[basis.Settings]:
    """Give the settings of this name."""
    homes = (settings, reasonings, labelling)
    found: type[basis.Settings] = next(getattr(home, name) for home in homes if hasattr(home, name))
    return found


def table(of: type[basis.Settings]) -> str:
    """Write one section's own settings as a table; what it inherits stands with the section that it inherits from."""
    lines = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key in of.__annotations__:
        if key in of.model_fields:
            field = of.model_fields[key]
            cells = (f"`{key}`", takes(field.annotation), default(field), meaning(field))
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def takes(annotation: Any) -> str:
    """Say what values a key takes."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return takes(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        kinds = [takes(kind) for kind in get_args(annotation) if kind is not type(None)]
        return " or ".join(dict.fromkeys(kinds))
    if isinstance(annotation, type) and issubclass(annotation, basis.Settings):
        return "mapping, below"
    if origin is tuple:
        inner = takes(get_args(annotation)[0])
        return "list" if inner == "Any" else f"list of {inner}"
    return NAMES.get(origin or annotation, getattr(annotation, "__name__", str(annotation)))


def default(field: FieldInfo) -> str:
    """Write the default as the config would."""
    if field.default is PydanticUndefined:
        return "required"
    value = field.default
    if isinstance(value, basis.Settings):
        return ""
    if isinstance(value, tuple):
        items = [item.name if isinstance(item, settings.Arm) else str(item) for item in value]
        return f"`[{', '.join(items)}]`"
    if isinstance(value, float):
        return f"`{value:g}`".replace("e-0", "e-")
    return f"`{written.write(value).splitlines()[0]}`"


def meaning(field: FieldInfo) -> str:
    """Say what a key is for; a section without a description of its own says what it is."""
    if field.description:
        return field.description
    kind = next((kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)), None)
    if kind is not None and issubclass(kind, basis.Settings) and kind.__doc__:
        return kind.__doc__[0].lower() + kind.__doc__[1:].rstrip(".")
    return "see above"


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
