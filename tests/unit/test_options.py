"""Command-line options made from dataclasses."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass, field
from typing import Literal

import pytest

from pelton.bench.options import ServeOptions, SweepOptions
from pelton.build.plan import PlanOptions
from pelton.build.write import BuildOptions
from pelton.config import BuildConfig, ExecutorConfig, KvCacheConfig, ServeConfig, field_docs
from pelton.doctor.run import DoctorOptions
from pelton.engine.generate import GenerateOptions
from pelton.engine.offline import ThroughputOptions
from pelton.options import add_options, given_options, read_options


@dataclass(frozen=True)
class Inner:
    depth: int = 3
    """How deep, in 100% of cases."""


@dataclass(frozen=True, kw_only=True)
class Options:
    model: str
    """What to run."""
    count: int = 5
    """How many."""
    rate: float | None = None
    """How fast."""
    name: str | None = None
    sizes: tuple[int, ...] = (1, 2)
    kind: Literal["a", "b"] = "a"
    block: Literal[16, 32] | None = None
    is_fast: bool = True
    json: bool = False
    output: str = ""
    inner: Inner = Inner()


@dataclass(frozen=True)
class Other:
    count: int | None = None
    extra: int = field(default=1)


def parse(*argv, classes=(Options,), positional=("model",)):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser, *classes, positional=positional)
    return parser.parse_args(list(argv))


def test_options_that_are_not_given_keep_the_classes_defaults():
    assert read_options(Options, parse("m")) == Options(model="m")
    assert vars(parse("m")) == {"model": "m"}


def test_every_kind_of_value():
    args = parse("m", "--count", "-7", "--rate", "0.5", "--name", "x", "--sizes", "4, 8,", "--kind", "b", "--block",
                 "32", "--no-is-fast", "--json", "-o", "file", "--depth", "9")
    assert read_options(Options, args) == Options(
        model="m", count=-7, rate=0.5, name="x", sizes=(4, 8), kind="b", block=32, is_fast=False, json=True,
        output="file", inner=Inner(depth=9))
    assert parse("m", "--output", "f").output == "f"


@pytest.mark.parametrize("argv", [
    ["m", "--count", "x"], ["m", "--count", "1.5"], ["m", "--rate", "fast"], ["m", "--sizes", "1,x"],
    ["m", "--kind", "c"], ["m", "--block", "17"], ["m", "--depth"], ["m", "--inner", "1"], ["m", "--nothing"],
    ["m", "--coun", "3"], ["m", "n"], []])
def test_wrong_values_are_refused(argv):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_options(parser, Options, positional=("model",))
    with pytest.raises(SystemExit) as caught:
        parser.parse_args(argv)
    assert caught.value.code == 2


def test_a_required_field_that_is_no_positional_is_a_required_option(capsys):
    with pytest.raises(SystemExit):
        parse(positional=())
    assert "required: --model" in capsys.readouterr().err
    assert parse("--model", "x", positional=()).model == "x"


def test_a_field_of_two_classes_is_one_option_and_keeps_each_default():
    args = parse("m", classes=(Options, Other))
    assert (read_options(Options, args).count, read_options(Other, args).count) == (5, None)
    args = parse("m", "--count", "8", "--extra", "2", classes=(Options, Other))
    assert (read_options(Options, args).count, read_options(Other, args)) == (8, Other(8, 2))


def test_given_options_are_those_on_the_command_line():
    args = parse("m", "--count", "5", "--depth", "3")
    assert given_options([Options], args) == {"model": "m", "count": 5, "inner": {"depth": 3}}
    assert given_options([Options], parse("m")) == {"model": "m"}


def test_fixed_values_win():
    assert read_options(Options, parse("m", "--count", "8"), count=1).count == 1


def test_help_tells_text_and_default():
    parser = argparse.ArgumentParser()
    add_options(parser, Options, positional=("model",))
    text = " ".join(parser.format_help().split())
    for part in ("MODEL What to run.", "--count N How many. (default: 5)", "--rate X How fast.", "--sizes A,B,...",
                 "(default: 1,2)", "--kind {a,b}", "(default: on)", "How deep, in 100% of cases. (default: 3)"):
        assert part in text
    assert "None" not in text


@pytest.mark.parametrize("cls", [
    BuildConfig, ExecutorConfig, KvCacheConfig, ServeConfig, GenerateOptions, ThroughputOptions, ServeOptions,
    SweepOptions, PlanOptions, BuildOptions, DoctorOptions])
def test_every_option_of_every_command_can_be_made(cls):
    parser = argparse.ArgumentParser()
    add_options(parser, cls)
    required = [f.name for f in dataclasses.fields(cls)
                if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    argv = [part for name in required for part in (f"--{name.replace('_', '-')}", "x")]
    options = read_options(cls, parser.parse_args(argv))
    assert [getattr(options, name) for name in required] == ["x"] * len(required)
    parser.format_help()
    assert set(field_docs(cls)) <= {f.name for f in dataclasses.fields(cls)}
