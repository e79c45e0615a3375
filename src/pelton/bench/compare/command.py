"""`pelton bench compare`: prints a comparison, writes its files, and ends with the rules' status."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pelton.bench.command import print_json
from pelton.bench.compare.comparison import Named, compare, read_named
from pelton.bench.compare.junit import to_junit
from pelton.bench.compare.markdown import to_markdown
from pelton.bench.compare.options import CompareOptions, RuleOptions
from pelton.bench.compare.page import render_comparison
from pelton.bench.compare.records import Comparison
from pelton.bench.compare.rules import parse_rule
from pelton.bench.compare.table import print_comparison
from pelton.bench.files import prepare_output_dir, to_json, write_atomic
from pelton.bench.table import make_console

RULE_BROKEN = 4  # exit status: a rule failed or could not be judged
FILES = ("compare.html", "compare.md", "compare.json")


def run_compare(options: CompareOptions) -> int:
    """Compares stored results. Returns the exit status.

    Raises:
        ConfigError: a result or a rule cannot be read, or the workloads differ.
    """
    return status_of(compare_and_tell(read_named(options.results), options))


def compare_and_tell(named: Sequence[Named], options: RuleOptions) -> Comparison:
    """Compares, prints and writes what the options ask for.

    Raises:
        ConfigError: a rule cannot be read, the workloads differ, or a file cannot be written.
    """
    rules = [parse_rule(text) for text in options.fail_if]
    comparison = compare(named, rules=rules, needs_significance=options.fail_if_significant, force=options.force)
    if options.junit is not None:
        write_atomic(Path(options.junit).expanduser(), to_junit(comparison))
    directory = None if options.output_dir is None else prepare_output_dir(options.output_dir)
    if directory is not None:
        write_comparison(comparison, directory)
    if options.json:
        print_json(comparison)
    else:
        print_comparison(make_console(), comparison)
        if directory is not None:
            print(f"\nreport   {directory / 'compare.html'}")
    return comparison


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Writes the page, the Markdown and the JSON."""
    contents = (render_comparison(comparison).encode(), to_markdown(comparison).encode(), to_json(comparison))
    for name, data in zip(FILES, contents):
        write_atomic(directory / name, data)


def status_of(comparison: Comparison) -> int:
    return RULE_BROKEN if comparison.broken else 0
