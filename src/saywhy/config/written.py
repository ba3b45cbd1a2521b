"""YAML 1.2's core scalars: read with a place for every key, and written so that they read back."""

from __future__ import annotations

import copy
import re
from typing import Any

import yaml

from saywhy.records import RequestError

KeyPath = tuple[str | int, ...]
Places = dict[KeyPath, str]

# Below these, scalars are the text as written: `yes`, `1`, `null` and `NA` are labels like any other.
TEXT_BELOW: tuple[KeyPath, ...] = (("task", "labels"), ("data", "label_names"))

_TAG = "tag:yaml.org,2002:"
_CORE = [
    (_TAG + "null", re.compile(r"(null|Null|NULL|~|)$")),
    (_TAG + "bool", re.compile(r"(true|True|TRUE|false|False|FALSE)$")),
    (_TAG + "int", re.compile(r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$")),
    (_TAG + "float", re.compile(
        r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$")),
]  # fmt: skip


class CoreLoader(yaml.SafeLoader):
    """Knows the scalars of YAML 1.2's core schema and no others."""

    yaml_implicit_resolvers = {None: _CORE}  # noqa: RUF012 (PyYAML declares it so)


class CoreDumper(yaml.SafeDumper):
    """Quotes whatever a reader of YAML 1.1 or of 1.2 would take for something else."""

    yaml_implicit_resolvers = {**yaml.SafeDumper.yaml_implicit_resolvers, None: _CORE}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        """Write what occurs twice twice: nobody reads anchors."""
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    # Only escaped do these line breaks read back as they are.
    style = '"' if set(text) & {"\x85", "\u2028", "\u2029"} else None
    return dumper.represent_scalar(_TAG + "str", text, style)


CoreDumper.add_representer(str, _represent_text)


def read(text: str, source: str, root: KeyPath = ()) -> tuple[Any, Places]:
    """Read one YAML document: its value, and for every key path below `root` where it stands ("name, line 3")."""
    try:
        node = yaml.compose(text, CoreLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}" if mark else source
        raise RequestError(f"{place}: this is not YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{source}: this is not YAML: {error}") from error
    places: Places = {}
    return (None if node is None else _value(node, root, source, places, ())), places


def write(value: Any) -> str:
    """Write plain values as YAML that `read` gives back unchanged."""
    return yaml.dump(value, Dumper=CoreDumper, sort_keys=False, allow_unicode=True, width=10_000)


def put(raw: dict[str, Any], path: KeyPath, value: Any, source: str) -> dict[str, Any]:
    """Give a copy of the settings with one value replaced; `path` may lead into lists by number."""
    raw = copy.deepcopy(raw)
    node: Any = raw
    for depth, key in enumerate(path):
        where: Any = key
        if isinstance(node, list):
            if not str(key).isdecimal() or int(key) >= len(node):
                raise RequestError(f"{source}: {dotted(path[:depth])} is a list of {len(node)}, it has no {key!r}")
            where = int(key)
        elif not isinstance(node, dict):
            raise RequestError(f"{source}: {dotted(path[:depth])} is {node!r}, there is nothing below it to set")
        if depth == len(path) - 1:
            node[where] = value
        elif isinstance(node, dict) and node.get(where) is None:
            node[where] = {}
        node = node[where]
    return raw


def set_one(raw: dict[str, Any], places: Places, item: str) -> dict[str, Any]:
    """Apply `a.b=value`, as `--set` gives it."""
    source = f"--set {item}"
    key, equals, text = item.partition("=")
    path: KeyPath = tuple(key.strip().split("."))
    if not equals or not all(path):
        raise RequestError(f"{source}: write it as key=value, for example --set data.rows=64")
    text = text.strip()
    # Only what is quoted or in brackets is more than one plain scalar: "Is it: a or b?" should not become a mapping.
    if text[:1] in ("[", "{", '"', "'"):
        value, _ = read(text, source, path)
    else:
        tag = next((tag for tag, pattern in _CORE if pattern.match(text)), _TAG + "str")
        value = _scalar(tag, text, path, source)
    for known in [known for known in places if known[: len(path)] == path]:
        del places[known]
    for depth in range(1, len(path)):
        places.setdefault(path[:depth], source)
    places[path] = source
    return put(raw, path, value, source)


def dotted(path: KeyPath) -> str:
    """Write a key path as `--set` and error messages have it."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def _value(node: yaml.Node, path: KeyPath, source: str, places: Places, above: tuple[int, ...]) -> Any:
    place = f"{source}, line {node.start_mark.line + 1}"
    places.setdefault(path, place)
    if id(node) in above:
        raise RequestError(f"{place}: {dotted(path)} holds itself")
    above = (*above, id(node))
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node.tag, node.value, path, place)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, (*path, i), source, places, above) for i, item in enumerate(node.value)]
    values: dict[str, Any] = {}
    for key, item in node.value:
        place = f"{source}, line {key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            raise RequestError(f"{place}: a key should be one word, not a list or a mapping")
        below = (*path, key.value)
        if key.value in values:
            raise RequestError(f"{place}: {dotted(below)} stands here a second time (first: {places[below]})")
        places[below] = place
        values[key.value] = _value(item, below, source, places, above)
    return values


def _scalar(tag: str, text: str, path: KeyPath, place: str) -> Any:
    """Make the value of a scalar; below `TEXT_BELOW` it is its text."""
    if any(len(path) > len(root) and path[: len(root)] == root for root in TEXT_BELOW):
        # `joy: null` has no description; `- null` is a label.
        return None if tag == _TAG + "null" and isinstance(path[-1], str) else text
    kind = tag.removeprefix(_TAG)
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
        if kind == "float":
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError as error:
        raise RequestError(f"{place}: {dotted(path)}: {text[:40]!r} cannot be read as a number") from error
    if kind != "str":
        raise RequestError(f"{place}: {dotted(path)}: the tag {tag!r} is not known here; leave it out")
    return text
