"""`pelton bench schema`: the JSON Schema of results.json, made from the records themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from pelton.bench import results
from pelton.bench.files import write_atomic
from pelton.bench.results import SCHEMA, RunResult
from pelton.config import own_field_docs


@dataclass(frozen=True, kw_only=True)
class SchemaOptions:
    """`pelton bench schema`."""

    output: str | None = None
    """File to write; none: standard output."""


def make_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a RunResult; each property is described by its field's docstring."""
    (root,), components = msgspec.json.schema_components([RunResult], ref_template="#/$defs/{name}")
    for name, definition in components.items():
        docs = own_field_docs(getattr(results, name))
        for field, found in definition["properties"].items():
            if docs.get(field):
                found["description"] = docs[field]
    components["RunResult"]["properties"]["schema"]["const"] = SCHEMA
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA, **root, "$defs": components}


def run_schema(options: SchemaOptions) -> int:
    """Prints the schema or writes it. Returns the exit status.

    Raises:
        ConfigError: the file cannot be written.
    """
    text = msgspec.json.format(msgspec.json.encode(make_schema()), indent=1) + b"\n"
    if options.output is None:
        print(text.decode(), end="")
    else:
        write_atomic(Path(options.output).expanduser(), text)
    return 0
