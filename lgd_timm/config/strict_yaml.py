"""Read YAML as plain data: text, numbers, true and false, null, and lists and mappings of them.

PyYAML's safe loader runs no code, but a small file from anybody can still do harm: aliases multiply, deep nesting
exhausts the stack, of two equal keys the last one wins in silence, and dates, sets and bytes appear where no code
expects them. Here each of these is refused, with its line.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import RecipeError

MAX_BYTES = 1_000_000
MAX_VALUES = 100_000  # a few seconds' work; the names of ImageNet-22k are a fifth
MAX_DEPTH = 20
_PREFIX = "tag:yaml.org,2002:"


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Returns:
        Its content as plain data.

    Raises:
        RecipeError: the file is unreadable, larger than `MAX_BYTES`, not YAML, or more than plain data.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{path} can't be read ({error.strerror}).") from error
    if len(content) > MAX_BYTES:
        raise RecipeError(
            f"{path} is larger than {MAX_BYTES:,} bytes, which no recipe is. Put long lists into files of their own."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{path} is not YAML: byte {error.start} is not UTF-8 ({error.reason}). Save it as UTF-8."
        ) from error
    return parse_yaml(text, source=str(path))


def parse_yaml(text: str, *, source: str, aliases: bool = False) -> Any:
    """Read a YAML text.

    Args:
        text: the YAML.
        source: what errors call it.
        aliases: whether anchors and aliases are read, as the Hub's client writes them into model cards.

    Returns:
        Its content as plain data.

    Raises:
        RecipeError: it is not YAML, or more than plain data; the message is one line.
    """
    try:
        loader = _Loader(text)
        loader.aliases = aliases
        return loader.get_single_data()
    except _Refused as error:
        raise RecipeError(f"{source}, line {error.line}: {error.reason}") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two: \UFFFFFFFF, and numbers such as 0x_
        raise RecipeError(f"{source} is not YAML: {' '.join(str(error).split())}") from error


class _Refused(Exception):
    """YAML that is well-formed and more than plain data."""

    def __init__(self, node: Any, reason: str) -> None:
        super().__init__(reason)
        self.line, self.reason = node.start_mark.line + 1, reason


class _Loader(yaml.SafeLoader):
    """SafeLoader, less what is not plain data. Nodes are checked before anything is built from them."""

    depth = values = 0
    aliases = False

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if not self.aliases and (isinstance(event, yaml.AliasEvent) or event.anchor is not None):
            raise _Refused(
                event,
                "anchors (&) and aliases (*) are not read. Write the value where it is needed, or quote the text.",
            )
        if not isinstance(event, yaml.AliasEvent) and event.tag is not None:
            raise _Refused(event, f"the tag {event.tag!r} is not read. Write a plain value, or quote the text.")
        if self.depth == MAX_DEPTH:
            raise _Refused(event, f"nested deeper than {MAX_DEPTH} levels. A recipe has three.")
        self.values += 1
        if self.values > MAX_VALUES:
            raise _Refused(event, f"more than {MAX_VALUES:,} values. Put long lists into files of their own.")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def plain_mapping(self, node: yaml.MappingNode) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag != f"{_PREFIX}str":
                what = (
                    "merge keys (<<) are not read"
                    if key_node.tag == f"{_PREFIX}merge"
                    else f"the key {_brief(key_node)} is not text"
                )
                raise _Refused(
                    key_node, f"{what}. Write the fields themselves, and quote keys that look like something else."
                )
            key = self.plain_text(key_node)
            if key in data:
                raise _Refused(key_node, f"the key {key[:80]!r} is there twice. Remove one.")
            data[key] = self.construct_object(value_node, deep=True)
        return data

    def plain_list(self, node: yaml.SequenceNode) -> list[Any]:
        return [self.construct_object(item, deep=True) for item in node.value]

    def plain_text(self, node: yaml.ScalarNode) -> str:
        text = node.value
        if (strange := self.NON_PRINTABLE.search(text)) is not None:  # by an escape: the file itself may not hold it
            raise _Refused(node, f"the character {strange.group()!r} can't be written to a file or shown. Remove it.")
        return text

    def plain_integer(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > 80 or not -(2**63) <= (value := self.construct_yaml_int(node)) < 2**63:
            raise _Refused(
                node, f"the integer {_brief(node)} does not fit into 64 bits. Give a smaller one, or quote it as text."
            )
        return value

    def refuse(self, node: yaml.Node) -> NoReturn:
        kind = node.tag.removeprefix(_PREFIX)
        raise _Refused(node, f"{_brief(node)} is a {kind}, which no field takes. If it is meant as text, quote it.")


# All that can be built. YAML also reads 2001-12-14 as a date and = as a default value: those come to `refuse`.
_CONSTRUCTORS: dict[str | None, Callable[..., Any]] = {
    f"{_PREFIX}map": _Loader.plain_mapping,
    f"{_PREFIX}seq": _Loader.plain_list,
    f"{_PREFIX}str": _Loader.plain_text,
    f"{_PREFIX}int": _Loader.plain_integer,
    f"{_PREFIX}float": _Loader.construct_yaml_float,
    f"{_PREFIX}bool": _Loader.construct_yaml_bool,
    f"{_PREFIX}null": _Loader.construct_yaml_null,
    None: _Loader.refuse,
}
_Loader.yaml_constructors = _CONSTRUCTORS


def _brief(node: yaml.Node) -> str:
    return repr(node.value[:40]) if isinstance(node, yaml.ScalarNode) else f"in line {node.start_mark.line + 1}"
