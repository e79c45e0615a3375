"""The training corpus: Python standard library sources and tests, filtered, licensed and split by file.

Knows nothing of tokens. A file is kept or dropped for one recorded reason; the split of a kept file depends on its
path alone, so a file never moves between splits when others come or go.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sysconfig
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

MIN_FILE_BYTES = 200
MAX_LINE_CHARS = 1000
VALID_PER_MILLE = 20
HELDOUT_PER_MILLE = 20
NEAR_DUPLICATE_JACCARD = 0.7

# Generated tables, deliberately broken sources and files in other languages' syntax (Python 2).
EXCLUDED_PATHS = (
    "site-packages/",
    "encodings/",
    "lib2to3/tests/data/",
    "pydoc_data/",
    "test/bad",
    "test/cjkencodings/",
    "test/encoded_modules/",
    "test/tokenizedata/",
    "idlelib/idle_test/example_noext",
    "html/entities.py",
    "stringprep.py",
    "_sysconfigdata",
    "test/re_tests.py",
    "test/test_unicode_identifiers.py",
)
GENERATED_MARKERS = re.compile(
    r"^#.*(generated (by|from|automatically)|auto-?generated|do not edit|don't edit)", re.IGNORECASE | re.MULTILINE
)

# First match wins. The order puts explicit identifiers before phrases that several licences share.
LICENCE_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.IGNORECASE))
    for name, pattern in (
        ("MIT", r"SPDX-License-Identifier:\s*MIT"),
        ("GPL", r"GNU (lesser |library )?general public licen[sc]e"),
        ("Apache-2.0", r"apache license,? version 2"),
        ("PSF-2.0", r"licensed to (the )?psf under a contributor agreement"),
        ("CNRI-Python", r"CNRI's Python 1\.6 license"),
        ("MIT", r"permission is hereby granted, free of charge"),
        ("BSD-3-Clause", r"redistribution and use in source and binary forms"),
        ("Zlib", r"provided\s+[#\s]*['\"]as[- ]is['\"].{0,300}?freely"),
        ("HPND", r"permission to use,\s+[#\s]*copy,\s+[#\s]*modify,?\s+[#\s]*and\s+[#\s]*distribute"),
    )
)
DEFAULT_LICENCE = "PSF-2.0"
LICENCE_HEAD_CHARS = 6000


@dataclass(frozen=True)
class SourceFile:
    """One kept file. `split` is train, valid (chooses the checkpoint) or heldout (only ever measured)."""

    path: str
    text: str
    licence: str
    split: str
    sha256: str

    @property
    def num_bytes(self) -> int:
        return len(self.text.encode())


def stdlib_dir() -> Path:
    """The running interpreter's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def collect(root: Path) -> tuple[list[SourceFile], Counter[str]]:
    """All usable `.py` files under `root`, sorted by path, and how many files each reason dropped."""
    dropped: Counter[str] = Counter()
    candidates: list[tuple[str, str]] = []
    seen: set[str] = set()
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root).as_posix()
        text, reason = _read(file, path)
        if reason is None and (digest := _digest(text)) in seen:
            reason = "exact duplicate"
        if reason is not None:
            dropped[reason] += 1
            continue
        seen.add(digest)
        candidates.append((path, text))
    near = near_duplicates(candidates)
    dropped["near duplicate"] += len(near)
    files = []
    for path, text in candidates:
        licence = licence_of(text)
        if path in near:
            continue
        if licence == "GPL":
            dropped["copyleft"] += 1
            continue
        files.append(SourceFile(path, text, licence, split_of(path), _digest(text)))
    return files, dropped


def licence_of(text: str) -> str:
    """SPDX identifier of the licence that a file's own head names, else that of the Python distribution."""
    head = text[:LICENCE_HEAD_CHARS]
    for name, pattern in LICENCE_PATTERNS:
        if re.search(pattern.pattern, head, re.IGNORECASE | re.DOTALL):
            return name
    return DEFAULT_LICENCE


def split_of(path: str) -> str:
    """Split of a file, from a hash of its path relative to the standard library."""
    bucket = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "big") % 1000
    if bucket < HELDOUT_PER_MILLE:
        return "heldout"
    return "valid" if bucket < HELDOUT_PER_MILLE + VALID_PER_MILLE else "train"


def near_duplicates(candidates: list[tuple[str, str]]) -> set[str]:
    """Paths of files whose set of substantial lines mostly equals that of an earlier file (Jaccard similarity)."""
    holders: dict[int, list[int]] = defaultdict(list)
    sizes: list[int] = []
    dropped: set[str] = set()
    for index, (path, text) in enumerate(candidates):
        lines = {hash(line.strip()) for line in text.splitlines() if len(line.strip()) > 15}
        sizes.append(len(lines))
        shared: Counter[int] = Counter(other for line in lines for other in holders[line])
        is_copy = any(n / (len(lines) + sizes[o] - n) >= NEAR_DUPLICATE_JACCARD for o, n in shared.most_common(5))
        if is_copy and len(lines) >= 10:
            dropped.add(path)
            continue
        for line in lines:
            # Lines that every file has (an import, the main guard) tell nothing and cost time.
            if len(holders[line]) < 50:
                holders[line].append(index)
    return dropped


def _read(file: Path, path: str) -> tuple[str, str | None]:
    if any(path.startswith(prefix) for prefix in EXCLUDED_PATHS):
        return "", "excluded path"
    try:
        text = file.read_bytes().decode("utf-8")
    except UnicodeDecodeError:
        return "", "not UTF-8"
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if len(text) < MIN_FILE_BYTES:
        return "", "too short"
    if "\x00" in text or max(map(len, text.splitlines())) > MAX_LINE_CHARS:
        return "", "very long line"
    if GENERATED_MARKERS.search(text[:3000]):
        return "", "generated"
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return "", "does not parse"
    return (text, "literal table") if _is_table(tree, text) else (text, None)


def _is_table(tree: ast.Module, text: str) -> bool:
    """Whether most of the file is numbers, or a top-level literal of over a thousand elements fills most of it."""
    if sum(map(str.isdigit, text)) > 0.25 * len(text):
        return True
    for node in tree.body:
        value = getattr(node, "value", None)
        if isinstance(value, (ast.Dict, ast.List, ast.Tuple, ast.Set)) and node.end_lineno is not None:
            num_elements = len(value.keys if isinstance(value, ast.Dict) else value.elts)
            if num_elements > 300 and (node.end_lineno - node.lineno) > 0.5 * text.count("\n"):
                return True
    return False


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
