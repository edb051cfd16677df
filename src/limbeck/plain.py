"""Plain data from YAML and JSON files, with the line of every key.

What is read is mappings, lists, texts, numbers, true, false and null, and nothing else: no tag constructs an object, a
key may stand only once, and a short file cannot unfold into a long one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from limbeck.errors import ConfigError

Path_ = tuple[str | int, ...]

_LARGEST = 256 * 1024
"""Bytes. A configuration is a page or two; the parser is slow enough for a larger file to be a way to stall it."""

_MOST_NODES = 20_000
"""Values, counted after aliases are unfolded."""

_DEEPEST = 50
"""Levels of nesting."""

_TAG = "tag:yaml.org,2002:"


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The texts of nested mappings, by their keys joined with dots."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flattened(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


@dataclass(frozen=True)
class PlainFile:
    """What a file says, and in which line it says it.

    Attributes:
        values: the file's content.
        name: what errors call the file.
        lines: the line of each key and list item, by its path; empty where lines are not known.
    """

    values: Any
    name: str
    lines: dict[Path_, int] = field(default_factory=dict)

    def line(self, path: Path_) -> int | None:
        """The line of a path or, where the file does not have it, of the nearest one above."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def read_plain(path: Path) -> PlainFile:
    """Read a YAML file or, where its name ends in `.json`, a JSON file.

    Raises:
        ConfigError: where the file is missing, too large, not a text, or not plain data; names the line.
    """
    if path.is_dir():
        raise ConfigError(f"{path} is a folder, expected a configuration file")
    try:
        # One byte more than allowed is read, so that a huge file is refused without being read.
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > _LARGEST:
        raise ConfigError(f"{path} is larger than {_LARGEST // 1024} KiB: this is no configuration")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not a text in UTF-8 (byte {error.start})") from None
    return parse_plain(text, name=path.name, json_format=path.suffix.lower() == ".json")


def parse_plain(text: str, *, name: str, json_format: bool = False) -> PlainFile:
    """Read YAML or JSON text; `name` is what errors call it.

    Raises:
        ConfigError: where it is not plain data; names the line.
    """
    try:
        found = PlainFile(_from_json(text, name), name) if json_format else _from_yaml(text, name)
    except RecursionError:
        raise ConfigError(f"{name}: nested too deeply") from None
    if found.values is None:
        raise ConfigError(f"{name} is empty")
    return found


# JSON -----------------------------------------------------------------------------------------------------------------


def _from_json(text: str, name: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{name}, line {error.lineno}: not JSON: {error.msg}") from None
    except ValueError as error:
        raise ConfigError(f"{name}: not JSON: {error}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ConfigError(f"the key {key!r} stands twice in one mapping")
        found[key] = value
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ConfigError(f"{text} is no number")


# YAML -----------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """The safe loader, reading plain values by the core schema of YAML 1.2.

    By YAML 1.1, which PyYAML follows otherwise, `no` is false, `1e-3` is a text and `12:30` is 750.
    """

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own type)


for _name, _pattern, _first in (
    ("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("int", r"^[-+]?[0-9]+$", "-+0123456789"),
    ("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", "-+.0123456789"),
    ("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", "-+."),
    ("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("merge", r"^<<$", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(_pattern), list(_first))


class _Dumper(yaml.SafeDumper):
    """The safe dumper, which quotes every text that the loader would take for something else."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def represent_text(self, value: str) -> Node:
        # Written as they are, line breaks other than "\n" would come back as spaces.
        breaks = any(mark in value for mark in "\r\x85\u2028\u2029")
        return self.represent_scalar(_TAG + "str", value, style='"' if breaks else None)


_Dumper.add_representer(str, _Dumper.represent_text)


def dump_plain(value: Any) -> str:
    """Plain data as YAML that `parse_plain` reads as it was."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def _from_yaml(text: str, name: str) -> PlainFile:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return PlainFile(None, name)
            _check_size(node, name)
            lines: dict[Path_, int] = {}
            return PlainFile(_value(node, (), lines, name), name, lines)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"{name}, line {mark.line + 1}" if mark else name
        raise ConfigError(f"{where}: not YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{name}: not YAML: {' '.join(str(error).split())}") from None


def _check_size(root: Node, name: str) -> None:
    """Refuse a file that unfolds into too much, before anything is unfolded. Each node is looked at once."""
    sizes: dict[int, int] = {}
    open_nodes: set[int] = set()

    def size(node: Node, depth: int) -> int:
        if id(node) in open_nodes:
            raise ConfigError(f"{_where(node, name)}: a value that contains itself")
        if depth > _DEEPEST:
            raise ConfigError(f"{_where(node, name)}: nested more than {_DEEPEST} levels deep")
        if id(node) not in sizes:
            open_nodes.add(id(node))
            sizes[id(node)] = 1 + sum(size(child, depth + 1) for child in _children(node))
            open_nodes.remove(id(node))
        return sizes[id(node)]

    if size(root, 1) > _MOST_NODES:
        raise ConfigError(f"{name} unfolds into more than {_MOST_NODES} values: this is no configuration")


def _children(node: Node) -> Iterator[Node]:
    if isinstance(node, MappingNode):
        for key, value in node.value:
            yield key
            yield value
    elif isinstance(node, SequenceNode):
        yield from node.value


def _value(node: Node, path: Path_, lines: dict[Path_, int], name: str) -> Any:
    """The plain value of a node. Written out, so that it is plain to see that nothing else can come of a file."""
    lines.setdefault(path, node.start_mark.line + 1)
    if isinstance(node, MappingNode) and node.tag == _TAG + "map":
        return _mapping(node, path, lines, name)
    if isinstance(node, SequenceNode) and node.tag == _TAG + "seq":
        return [_value(child, (*path, index), lines, name) for index, child in enumerate(node.value)]
    if isinstance(node, ScalarNode):
        match node.tag.removeprefix(_TAG):
            case "str":
                return node.value
            case "bool" if node.value.lower() in ("true", "false"):
                return node.value.lower() == "true"
            case "int" | "float" as kind:
                return _number(node, name, int if kind == "int" else float)
            case "null":
                return None
    raise ConfigError(
        f"{_where(node, name)}: the tag {node.tag.replace(_TAG, '!!')} is refused: a configuration is plain data "
        "(mappings, lists, texts, numbers, true, false, null)"
    )


def _number(node: ScalarNode, name: str, kind: type[int] | type[float]) -> int | float:
    text = node.value.lower()
    try:
        return kind(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise ConfigError(f"{_where(node, name)}: {node.value[:40]!r} is no number") from None


def _mapping(node: MappingNode, path: Path_, lines: dict[Path_, int], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    merged: dict[str, Any] = {}
    for key_node, value_node in node.value:
        if key_node.tag == _TAG + "merge":
            for key, value in _merged(value_node, path, lines, name).items():
                merged.setdefault(key, value)
            continue
        if not isinstance(key_node, ScalarNode):
            raise ConfigError(f"{_where(key_node, name)}: a key must be a text")
        # A key is a text whatever it looks like: `teachers: {1: ...}` names a teacher "1".
        key = key_node.value
        if key in found:
            first = lines[(*path, key)]
            raise ConfigError(f"{_where(key_node, name)}: the key {key!r} stands twice (first in line {first})")
        lines[(*path, key)] = key_node.start_mark.line + 1
        found[key] = _value(value_node, (*path, key), lines, name)
    return merged | found


def _merged(node: Node, path: Path_, lines: dict[Path_, int], name: str) -> dict[str, Any]:
    parts = node.value if isinstance(node, SequenceNode) else [node]
    found: dict[str, Any] = {}
    for part in parts:
        if not isinstance(part, MappingNode):
            raise ConfigError(f"{_where(part, name)}: << takes a mapping, or a list of mappings")
        # Their own lines are dropped: what is said of a merged key points at the mapping it was merged into.
        for key, value in _mapping(part, path, {}, name).items():
            found.setdefault(key, value)
    return found


def _where(node: Node, name: str) -> str:
    return f"{name}, line {node.start_mark.line + 1}"
