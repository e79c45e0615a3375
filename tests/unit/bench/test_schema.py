import json

import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.files import to_json
from pelton.bench.results import RequestRecord
from pelton.bench.schema import SchemaOptions, make_schema, run_schema

KINDS = {"string": str, "integer": int, "boolean": bool, "object": dict, "array": list, "null": type(None)}


def problems(value, schema, defs, at="$"):
    """What in a JSON value breaks the keywords that our schema uses."""
    if "$ref" in schema:
        yield from problems(value, defs[schema["$ref"].removeprefix("#/$defs/")], defs, at)
        return
    if "anyOf" in schema:
        if all(any(True for _ in problems(value, option, defs, at)) for option in schema["anyOf"]):
            yield f"{at}: {value!r} fits none of {schema['anyOf']}"
        return
    if "const" in schema and value != schema["const"]:
        yield f"{at}: not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: not one of {schema['enum']}"
    kind = schema.get("type")
    if kind == "number":
        if not isinstance(value, int | float) or isinstance(value, bool):
            yield f"{at}: no number"
    elif kind is not None and (not isinstance(value, KINDS[kind]) or (kind == "integer" and isinstance(value, bool))):
        yield f"{at}: no {kind}"
    elif kind == "array":
        for i, item in enumerate(value):
            yield from problems(item, schema["items"], defs, f"{at}[{i}]")
    elif kind == "object":
        known = schema.get("properties", {})
        yield from (f"{at}: misses {name}" for name in schema.get("required", ()) if name not in value)
        for name, item in value.items():
            inner = known.get(name, schema.get("additionalProperties", {}))
            if inner is False:
                yield f"{at}: unknown {name}"
            elif isinstance(inner, dict):
                yield from problems(item, inner, defs, f"{at}.{name}")


def check(data):
    schema = make_schema()
    return list(problems(data, schema, schema["$defs"]))


@pytest.fixture
def written():
    made = result([(spec(num_requests=2), [request(), later(request(error="timeout"), 20_000, index=1)]),
                   (spec(concurrency=2), [])])
    return json.loads(to_json(made))


def test_written_result_fits(written):
    assert check(written) == []


@pytest.mark.parametrize(("break_it", "where"), [
    (lambda d: d.update(schema="pelton.bench/1"), "$.schema"),
    (lambda d: d["requests"][0].update(sent_us="now"), "$.requests[0].sent_us"),
    (lambda d: d["cells"][0].pop("id"), "$.cells[0]"),
    (lambda d: d["cells"][0]["load"].update(kind="endless"), "$.cells[0].load.kind"),
    (lambda d: d.update(surprise=1), "$")])
def test_another_shape_does_not(written, break_it, where):
    break_it(written)
    (problem,) = check(written)
    assert problem.startswith(f"{where}:")


def test_fields_are_described(tmp_path):
    path = tmp_path / "schema.json"
    assert run_schema(SchemaOptions(output=str(path))) == 0
    properties = json.loads(path.read_text())["$defs"]["RequestRecord"]["properties"]
    assert set(properties) == set(RequestRecord.__struct_fields__)
    assert "coordinated" not in properties["sent_us"]["description"]
    assert properties["sent_us"]["description"].startswith("Just before the request was handed to the socket")
