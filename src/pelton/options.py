"""Command-line options made from configuration dataclasses, so that each default and each text stands in one place."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar

from pelton.config import field_docs

T = TypeVar("T")


def add_options(parser: argparse.ArgumentParser, *classes: type, positional: Iterable[str] = (),
                skip: Iterable[str] = ()) -> None:
    """Adds an option per field of each dataclass, nested dataclasses' fields in the same flat list.

    A field two classes share becomes one option, with the first one's text; each class keeps its own default. A
    field's metadata may name further spellings of its option as `aliases`.
    """
    taken = {action.dest for action in parser._actions} | set(skip)
    for cls in classes:
        docs, hints = field_docs(cls), typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if field.name in taken:
                continue
            taken.add(field.name)
            if dataclasses.is_dataclass(hints[field.name]):
                taken.discard(field.name)
                add_options(parser, hints[field.name], skip=taken)
                taken |= {action.dest for action in parser._actions}
                continue
            _add_option(parser, field, hints[field.name], docs.get(field.name, ""), field.name in positional)


def read_options(cls: type[T], args: argparse.Namespace, **fixed: Any) -> T:
    """Makes the dataclass from parsed options; options that were not given keep the class's defaults."""
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[field.name]):
            values[field.name] = read_options(hints[field.name], args)
        elif hasattr(args, field.name):
            values[field.name] = getattr(args, field.name)
    return cls(**{**values, **fixed})


def given_options(classes: Iterable[type], args: argparse.Namespace) -> dict[str, Any]:
    """The options of these dataclasses that stood on the command line, nested ones folded into dicts."""
    given: dict[str, Any] = {}
    for cls in classes:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            if dataclasses.is_dataclass(hints[field.name]):
                nested = given_options([hints[field.name]], args)
                if nested:
                    given[field.name] = nested
            elif hasattr(args, field.name):
                given[field.name] = getattr(args, field.name)
    return given


def _add_option(parser: argparse.ArgumentParser, field: dataclasses.Field[Any], hint: Any, doc: str,
                is_positional: bool) -> None:
    is_required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    kind, choices, is_optional = _parse_hint(hint)
    default = "" if is_required or field.default in (None, "") else f" (default: {_show(field.default)})"
    options: dict[str, Any] = {"help": (doc + default).replace("%", "%%").strip()}
    if choices:
        options["choices"] = choices
    if kind is not str:
        options["type"] = kind
    if is_positional:
        if not is_required:
            options["nargs"] = "?"
        parser.add_argument(field.name, metavar=field.name.upper(), default=argparse.SUPPRESS, **options)
        return
    flag = "--" + field.name.replace("_", "-")
    if kind is bool:
        parser.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS,
                            help=options["help"])
        return
    if not choices:
        options["metavar"] = _metavar(kind)
    flags = (*(("-o",) if field.name == "output" else ()), flag, *field.metadata.get("aliases", ()))
    parser.add_argument(*flags, dest=field.name, default=argparse.SUPPRESS, required=is_required and not is_optional,
                        **options)


def _parse_hint(hint: Any) -> tuple[Callable[[str], Any], list[Any] | None, bool]:
    """Type annotation -> (parser of one value, choices, whether None is allowed)."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        members = [member for member in typing.get_args(hint) if member is not type(None)]
        parsed = [_parse_hint(member) for member in members]
        choices = [choice for _, more, _ in parsed for choice in more or []]
        return parsed[0][0], choices or None, len(members) < len(typing.get_args(hint))
    if typing.get_origin(hint) is Literal:
        choices = list(typing.get_args(hint))
        return type(choices[0]), choices, False
    if typing.get_origin(hint) is tuple:
        return _comma_list(_parse_hint(typing.get_args(hint)[0])[0]), None, False
    if hasattr(hint, "parse"):
        return _reader(hint), None, False
    assert hint in (bool, int, float, str), hint
    return hint, None, False


def _reader(cls: Any) -> Callable[[str], Any]:
    """A type that reads its own text, so that its own error is shown."""
    def parse(text: str) -> Any:
        try:
            return cls.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parse.__name__ = cls.__name__.lower()
    return parse


def _comma_list(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def parse(text: str) -> tuple[Any, ...]:
        return tuple(kind(part) for part in text.split(",") if part.strip())

    parse.__name__ = f"comma-separated {getattr(kind, '__name__', 'value')}"
    return parse


def _metavar(kind: Callable[[str], Any]) -> str:
    return {int: "N", float: "X", str: "TEXT"}.get(kind, "A,B,..." if kind.__name__.startswith("comma") else "N")


def _show(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
