"""The documentation against the code: links, paths, names, commands, and the lists that must be complete."""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from pathlib import Path

import pytest

from pelton import cli, physics
from pelton.bench.metrics.registry import all_metrics
from pelton.doctor.registry import CHECKS
from pelton.metrics.serving import ServingMetrics
from pelton.models.registry import supported
from pelton.server.openai.protocol import ChatRequest, CompletionRequest, StreamOptions

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "pelton"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
WRITTEN_BY_COMMANDS = ("out/", "ckpt/", ".venv/")  # what the commands of the pages make


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    return [body for language, body in FENCE.findall(page.read_text(encoding="utf-8")) if language in languages]


def spans(page: Path) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def section(page: Path, start: str, end: str) -> str:
    return page.read_text(encoding="utf-8").partition(start)[2].partition(end)[0]


@PAGE
def test_relative_links_resolve(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


@PAGE
def test_paths_exist(page):
    """Paths are relative to the repository or to src/pelton; NAME stands for a name of the reader's choice."""
    found = [span for span in spans(page) if re.fullmatch(r"\.?\w[\w.-]*(/[\w.-]+)*/?", span)]
    for path in found:
        is_path = "/" in path or re.search(r"\.(py|md|json|html|sh|csv|txt|toml|jinja|safetensors)$", path)
        if not is_path or "NAME" in path or path.startswith(WRITTEN_BY_COMMANDS):
            continue
        if "/" not in path and not path.endswith(".py"):
            continue  # a file of a checkpoint, an engine or a result, named alone
        names = [path] if "/" in path else [f"**/{path}"]
        assert any(list(base.glob(name)) for base in (ROOT, PACKAGE) for name in names), f"{page.name}: {path}"


@functools.cache
def definitions() -> tuple[dict[str, set[str]], set[str]]:
    """Class -> its members (inherited ones of our own classes included), and all names that modules define."""
    members: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    names: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names.add(node.name)
                bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                members.setdefault(node.name, set()).update(*map(_bound, node.body))
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                names.add(node.name)
            elif isinstance(node, ast.Assign | ast.AnnAssign):
                names |= _bound(node)
    for name, parents in bases.items():
        for parent in parents:
            members[name] |= members.get(parent, set())
    return members, names


def _bound(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        own = {n.attr for n in ast.walk(node) if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)}
        return {node.name} | own
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return {target.id for target in targets if isinstance(target, ast.Name)}


@PAGE
def test_names_exist(page):
    members, names = definitions()
    external = {"Hugging", "True", "False", "None"}
    for span in spans(page):
        if match := re.fullmatch(r"([A-Z]\w+)\.(\w+)(\(.*\))?", span):
            assert match[2] in members.get(match[1], ()), f"{page.name}: {span}"
        elif match := re.fullmatch(r"messages\.(\w+)", span):
            assert match[1] in members, f"{page.name}: {span}"
        elif re.fullmatch(r"[A-Z][a-z]+([A-Z][a-zA-Z]*)+", span) and span not in external | set(supported()):
            assert span in names, f"{page.name}: {span}"


def test_functions_of_the_request_page_exist():
    _, names = definitions()
    identifiers = {span for span in spans(ROOT / "docs" / "request.md") if re.fullmatch(r"_?[a-z]+(_[a-z]+)+", span)}
    known = names | {name for members in definitions()[0].values() for name in members}
    assert identifiers <= known, sorted(identifiers - known)
    assert len(identifiers) > 15


class Parsed(Exception):
    """The command line was understood; nothing is run."""


def commands(page: Path) -> list[str]:
    """`pelton ...` command lines of fenced blocks, continuation lines joined."""
    lines = "\n".join(blocks(page, "", "sh")).replace("\\\n", " ").splitlines()
    return [line.removeprefix("$ ") for line in lines if line.removeprefix("$ ").startswith("pelton ")]


@PAGE
def test_commands_are_known_to_the_parser(page, monkeypatch):
    def stop_after(self, args=None, namespace=None):
        _, unknown = self.parse_known_args(args, namespace)
        assert not unknown, unknown
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop_after)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_intermixed_args", stop_after)
    for line in commands(page):
        words = shlex.split(line, comments=True)
        with pytest.raises(Parsed):
            cli.main(words[1:])


def test_there_are_commands_to_check():
    assert sum(len(commands(page)) for page in PAGES) > 15


@PAGE
def test_options_in_prose_exist(page):
    """Every --option that the text names belongs to some command."""
    known: set[str] = set()

    def collect(self, args=None, namespace=None):
        known.update(option for action in self._actions for option in action.option_strings)
        raise Parsed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", collect)
        patch.setattr(argparse.ArgumentParser, "parse_intermixed_args", collect)
        for words in COMMAND_WORDS:
            with pytest.raises(Parsed):
                cli.main(list(words))
    for span in spans(page):
        for option in re.findall(r"(?<![\w-])--[a-z][\w-]*", span):
            assert option in known, f"{page.name}: {option}"


COMMAND_WORDS = (("doctor",), ("plan",), ("convert",), ("build",), ("engine", "show"), ("generate",), ("serve",),
                 ("bench", "throughput"), ("bench", "latency"), ("bench", "serve"), ("bench", "sweep"),
                 ("bench", "report"), ("bench", "search"), ("bench", "calibrate"), ("bench", "schema"),
                 ("bench", "compare"), ("bench", "baseline", "save"), ("bench", "baseline", "check"),
                 ("bench", "engines"))


def test_all_commands_are_looked_at():
    assert {words[0] for words in COMMAND_WORDS} == set(cli.COMMANDS)


@PAGE
def test_make_targets_exist(page):
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    text = "\n".join([*spans(page), *blocks(page, "", "sh")])
    assert set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) <= targets


@PAGE
def test_python_examples_compile_and_import_public_names(page):
    import pelton

    for body in blocks(page, "python"):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and node.module == "pelton":
                assert {alias.name for alias in node.names} <= set(pelton.__all__)


def is_package(folder: Path) -> bool:
    """Whether a folder holds anything but an empty __init__.py."""
    files = [file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return any(file.name not in ("__init__.py", "py.typed") for file in files)


def test_readme_tree_is_the_tree():
    tree = next(body for body in blocks(ROOT / "README.md", "") if body.startswith("src/pelton/"))
    listed: set[str] = set()
    parents: list[str] = []
    for line in tree.splitlines():
        match = re.match(r"( *)(\S+)(?: {2,}\S.*)?$", line)
        assert match, line
        depth = len(match[1]) // 2
        parents = [*parents[:depth], match[2].rstrip("/")]
        listed.add("/".join(parents))
        assert line == "src/pelton/" or len(match[0].split(None, 1)) == 2, f"no description: {line}"
    modules = {f"src/pelton/{file.name}" for file in PACKAGE.glob("*.py") if file.name != "__init__.py"}
    packages = {str(folder.relative_to(ROOT)) for folder in PACKAGE.rglob("*") if folder.is_dir() and is_package(folder)
                and "__pycache__" not in folder.parts and "models_data" not in folder.parent.parts}
    others = {name for name in listed if "/" not in name}
    assert listed - others == modules | packages | {"src/pelton"}
    for name in others:
        assert (ROOT / name).is_dir(), name


@pytest.mark.parametrize(("page", "names"), [
    ("server.md", sorted({*ChatRequest.__struct_fields__, *CompletionRequest.__struct_fields__,
                          *StreamOptions.__struct_fields__})),
    ("benchmarking.md", [metric.name for metric in all_metrics()]),
    ("checkpoints.md", supported()),
    ("doctor.md", list(CHECKS)),
])
def test_lists_are_complete(page, names):
    missing = [name for name in names if name not in spans(ROOT / "docs" / page)]
    assert not missing, f"docs/{page} does not tell of {', '.join(missing)}"


def test_serving_metrics_are_all_told_of():
    declared = {family.name for family in ServingMetrics().registry.collect()}
    told = {name.removesuffix("_total") for name in spans(ROOT / "docs" / "server.md") if name.startswith("pelton_")}
    assert told == {name.removesuffix("_total") for name in declared}


def test_audit_findings_are_all_told_of():
    source = "".join(file.read_text(encoding="utf-8") for file in (PACKAGE / "bench" / "audit" / "checks").iterdir()
                     if file.suffix == ".py")
    table = section(ROOT / "docs" / "benchmarking.md", "## The audit", "## ")
    names = set(re.findall(r'(?:Finding\(name=|report\(\s*)"(\w+)"', source))
    assert len(names) > 20
    assert names <= set(re.findall(r"`(\w+)`", table))


def test_hardware_table_is_the_codes():
    rows = section(ROOT / "docs" / "plan.md", "<!-- hardware -->", "<!-- /hardware -->").strip().splitlines()[2:]
    told = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
    assert [(row[0], row[1], row[2], row[3], row[4]) for row in told] == [
        (h.name, h.architecture, f"{h.memory_bytes / physics.GIB:.1f}", f"{h.bandwidth / 1e9:,.0f}",
         ", ".join(f"{kind} {rate / 1e12:,.4g}" for kind, rate in h.flops.items())) for h in physics.HARDWARE]


def test_random_stream_is_the_one_described():
    """The definition in docs/engine.md, computed here from its words."""
    from pelton.kernels.sampling.random import exponentials, token_word, token_words

    np = pytest.importorskip("numpy")
    word = token_word(7, 11, 6)
    assert token_words(np.array([7]), np.array([11]), np.array([[6]]))[0, 0] == word
    v = np.float32(np.float32(word) * 2.0**-32 + 2.0**-33)
    assert exponentials(np.array([word], dtype=np.uint64)).item() == pytest.approx(-np.log1p(-min(v, 1 - 2.0**-24)))
