"""The `pelton` command: one function per subcommand. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NoReturn

from pelton.errors import PeltonError, missing_part
from pelton.stdout import drop, named_output

Command = Callable[[list[str]], int]


class _Parser(argparse.ArgumentParser):
    """argparse with one line per error: the list of all options is what --help is for."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help lists the options)\n")


def _parser(name: str, about: str) -> argparse.ArgumentParser:
    width = min(110, shutil.get_terminal_size((100, 24)).columns)
    return _Parser(prog=f"pelton {name}", description=about, allow_abbrev=False,
                   formatter_class=lambda prog: argparse.HelpFormatter(prog, 2, 30, width))


def _options(cls: type, name: str, about: str, argv: list[str], *positional: str) -> Any:
    """Parses a command whose options are exactly one dataclass."""
    from pelton.options import add_options, read_options

    parser = _parser(name, about)
    add_options(parser, cls, positional=positional)
    return read_options(cls, parser.parse_args(argv))


def _listed(cls: type, name: str, about: str, argv: list[str], *positional: str) -> Any:
    """As `_options`, where a positional list takes several words and the option fail_if may be repeated."""
    import typing

    from pelton.config import field_docs
    from pelton.options import add_options, read_options

    parser, docs, hints = _parser(name, about), field_docs(cls), typing.get_type_hints(cls)
    lists = [word for word in positional if typing.get_origin(hints[word]) is tuple]
    for word in lists:
        parser.add_argument(word, nargs="+", metavar=word.upper(), help=docs[word].replace("%", "%%"))
    parser.add_argument("--fail-if", action="append", default=[], metavar="RULE",
                        help=docs["fail_if"].replace("%", "%%"))
    add_options(parser, cls, positional=positional)
    args = parser.parse_intermixed_args(argv)
    return read_options(cls, args, **{word: tuple(getattr(args, word)) for word in (*lists, "fail_if")})


def doctor(argv: list[str]) -> int:
    """is this machine ready? each problem with its mend"""
    from pelton.doctor.run import DoctorOptions, run_doctor

    return run_doctor(_options(DoctorOptions, "doctor", doctor.__doc__, argv))


def plan(argv: list[str]) -> int:
    """memory ledger, KV capacity and predicted speed of a model on a GPU; needs no GPU"""
    from pelton.build.plan import PlanOptions, run_plan

    return run_plan(_options(PlanOptions, "plan", plan.__doc__, argv, "model"))


def convert(argv: list[str]) -> int:
    """checkpoint -> named, fused, sharded tensors"""
    from pelton.checkpoint.convert import ConvertOptions, run_convert

    return run_convert(_options(ConvertOptions, "convert", convert.__doc__, argv, "model"))


def build(argv: list[str]) -> int:
    """checkpoint -> engine directory"""
    from pelton.build.write import BuildOptions, run_build

    return run_build(_options(BuildOptions, "build", build.__doc__, argv, "model"))


def engine(argv: list[str]) -> int:
    """engine show: what is inside an engine directory, for which GPU, what it measured"""
    return _subcommand("engine", {"show": engine_show}, argv)


def engine_show(argv: list[str]) -> int:
    """what is inside an engine directory"""
    from pelton.build.show import ShowOptions, run_show

    return run_show(_options(ShowOptions, "engine show", engine_show.__doc__, argv, "engine"))


def generate(argv: list[str]) -> int:
    """one-off generation from a terminal, streaming"""
    from pelton.config import BuildConfig, ExecutorConfig
    from pelton.engine.generate import GenerateOptions, run_generate
    from pelton.options import add_options, given_options, read_options

    parser = _parser("generate", generate.__doc__)
    add_options(parser, GenerateOptions, BuildConfig, ExecutorConfig, positional=("model", "prompt"))
    args = parser.parse_intermixed_args(argv)
    return run_generate(read_options(GenerateOptions, args), given_options((BuildConfig, ExecutorConfig), args))


def serve(argv: list[str]) -> int:
    """OpenAI server, metrics, playground page"""
    from pelton.config import BuildConfig, ExecutorConfig, ServeConfig
    from pelton.engine.options import resolve_engine, resolve_random
    from pelton.options import add_options, given_options, read_options
    from pelton.server.launch import SERVED_CHUNK, bind, run_serve

    parser = _parser("serve", serve.__doc__)
    parser.add_argument("model", metavar="MODEL|ENGINE", nargs="?", default="pelton-tiny",
                        help="checkpoint, hub id or engine directory (default: pelton-tiny)")
    add_options(parser, ServeConfig, BuildConfig, ExecutorConfig)
    args = parser.parse_args(argv)
    serve_config = read_options(ServeConfig, args)
    bind(serve_config.host, serve_config.port).close()  # a taken port is told before the model is fetched and built
    engine_options = {"chunked_prefill_size": SERVED_CHUNK, **given_options((BuildConfig, ExecutorConfig), args)}
    model_name = serve_config.served_model_name or args.model
    if serve_config.random_weights:
        model_dir, weights, run = resolve_random(args.model, engine_options, seed=serve_config.seed)
        return run_serve(model_dir, serve_config, run, model_name=model_name, random_weights=weights)
    engine_dir, run = resolve_engine(args.model, engine_options, in_child=True)
    return run_serve(engine_dir, serve_config, run, model_name=model_name)


def bench(argv: list[str]) -> int:
    """any server over HTTP; an engine offline; reports; comparisons"""
    return _subcommand("bench", {"latency": bench_latency, "throughput": bench_throughput, "serve": bench_serve,
                                 "sweep": bench_sweep, "search": bench_search, "calibrate": bench_calibrate,
                                 "report": bench_report, "compare": bench_compare, "baseline": bench_baseline,
                                 "engines": bench_engines, "schema": bench_schema}, argv)


def bench_throughput(argv: list[str]) -> int:
    """offline tokens/s of an engine in this process, per batch size"""
    from pelton.engine.offline import ThroughputOptions

    return _offline("throughput", ThroughputOptions, bench_throughput.__doc__, argv)


def bench_latency(argv: list[str]) -> int:
    """offline latency of an engine in this process, one request at a time by default"""
    from pelton.engine.offline import LatencyOptions

    return _offline("latency", LatencyOptions, bench_latency.__doc__, argv)


def _offline(kind: Any, cls: type, about: str, argv: list[str]) -> int:
    """The engine measures, the benchmark records: neither knows the other."""
    from pelton.bench.offline import record_offline
    from pelton.config import BuildConfig, ExecutorConfig
    from pelton.engine.offline import measure_throughput
    from pelton.options import add_options, given_options, read_options

    parser = _parser(f"bench {kind}", about)
    add_options(parser, cls, BuildConfig, ExecutorConfig, positional=("model",))
    args = parser.parse_args(argv)
    options = read_options(cls, args)
    runs = measure_throughput(options, given_options((BuildConfig, ExecutorConfig), args))
    return record_offline(kind, runs, model=options.model, seed=options.seed, output_dir=options.output_dir,
                          as_json=options.json, strict=options.strict)


def bench_serve(argv: list[str]) -> int:
    """one prompt size against a server, without and with streaming, at each concurrency"""
    from pelton.bench.options import ServeOptions
    from pelton.bench.serve import run_serve

    return run_serve(_options(ServeOptions, "bench serve", bench_serve.__doc__, argv, "url"))


def bench_sweep(argv: list[str]) -> int:
    """concurrency x prompt tokens against a server, with report"""
    from pelton.bench.options import SweepOptions
    from pelton.bench.sweep import run_sweep

    return run_sweep(_options(SweepOptions, "bench sweep", bench_sweep.__doc__, argv, "url"))


def bench_report(argv: list[str]) -> int:
    """the report of a stored result, made again"""
    from pelton.bench.options import ReportOptions
    from pelton.bench.report.command import run_report

    return run_report(_options(ReportOptions, "bench report", bench_report.__doc__, argv, "results"))


def bench_search(argv: list[str]) -> int:
    """the highest load that keeps latency targets, or the knee of throughput"""
    from pelton.bench.options import SearchOptions
    from pelton.bench.search import run_search

    return run_search(_options(SearchOptions, "bench search", bench_search.__doc__, argv, "url"))


def bench_calibrate(argv: list[str]) -> int:
    """the client's own error, against a server of known timing"""
    from pelton.bench.calibrate import CalibrateOptions, run_calibrate

    return run_calibrate(_options(CalibrateOptions, "bench calibrate", bench_calibrate.__doc__, argv))


def bench_compare(argv: list[str]) -> int:
    """results against each other: same workload? effects with intervals; rules for CI"""
    from pelton.bench.compare.command import run_compare
    from pelton.bench.compare.options import CompareOptions

    return run_compare(_listed(CompareOptions, "bench compare", bench_compare.__doc__, argv, "results"))


def bench_baseline(argv: list[str]) -> int:
    """results kept under a name: save one, check another against it"""
    return _subcommand("bench baseline", {"save": baseline_save, "check": baseline_check}, argv)


def baseline_save(argv: list[str]) -> int:
    """store a result as a baseline"""
    from pelton.bench.compare.baselines import run_save
    from pelton.bench.compare.options import BaselineSaveOptions

    return run_save(_options(BaselineSaveOptions, "bench baseline save", baseline_save.__doc__, argv, "name",
                             "results"))


def baseline_check(argv: list[str]) -> int:
    """hold a result against a baseline"""
    from pelton.bench.compare.baselines import run_check
    from pelton.bench.compare.options import BaselineCheckOptions

    return run_check(_listed(BaselineCheckOptions, "bench baseline check", baseline_check.__doc__, argv, "name",
                             "results"))


def bench_engines(argv: list[str]) -> int:
    """servers of a recipe beside each other: started, checked, measured in rounds, compared"""
    from pelton.bench.engines.command import run_engines
    from pelton.bench.engines.options import FROM_RECIPE, EnginesOptions
    from pelton.bench.engines.recipe import load_recipes
    from pelton.bench.options import SweepOptions
    from pelton.config import field_docs
    from pelton.options import add_options, given_options, read_options

    parser = _parser("bench engines", bench_engines.__doc__)
    parser.add_argument("recipes", nargs="+", metavar="RECIPE", help="YAML files; their engines are joined")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="value of a recipe's variable")
    parser.add_argument("--fail-if", action="append", default=[], metavar="RULE",
                        help=field_docs(EnginesOptions)["fail_if"].replace("%", "%%"))
    add_options(parser, EnginesOptions)
    add_options(parser, SweepOptions, skip=FROM_RECIPE)
    args = parser.parse_intermixed_args(argv)
    recipe = load_recipes(args.recipes, args.set)
    from_recipe = recipe.workload_argv(vars(args))
    args = parser.parse_intermixed_args([*from_recipe, *argv])  # what stands on the command line wins
    options = read_options(EnginesOptions, args, fail_if=tuple(args.fail_if))
    own = given_options((EnginesOptions,), args)
    workload = {name: value for name, value in given_options((SweepOptions,), args).items() if name not in own}
    return run_engines(recipe, options, workload)


def bench_schema(argv: list[str]) -> int:
    """the JSON Schema of results.json"""
    from pelton.bench.schema import SchemaOptions, run_schema

    return run_schema(_options(SchemaOptions, "bench schema", bench_schema.__doc__, argv))


COMMANDS: dict[str, Command] = {
    "doctor": doctor, "plan": plan, "convert": convert, "build": build, "engine": engine, "generate": generate,
    "serve": serve, "bench": bench,
}


def _subcommand(name: str, commands: dict[str, Command], argv: list[str]) -> int:
    """Runs the subcommand argv[0] names, or prints the list of them."""
    prog = f"pelton {name}".strip()
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    out = sys.stdout if argv and argv[0] in ("-h", "--help") else sys.stderr
    if argv and out is sys.stderr:
        print(f"{prog}: unknown command {argv[0]!r}", file=out)
    print(f"usage: {prog} COMMAND [OPTIONS]   ({prog} COMMAND --help lists the options)\n", file=out)
    for word, command in commands.items():
        print(f"  {word:<12}{command.__doc__}", file=out)
    return 0 if out is sys.stdout else 2


def _run(argv: list[str]) -> int:
    if argv[:1] in (["--version"], ["-V"]):
        from pelton import __version__

        print(f"pelton {__version__}")
        return 0
    return _subcommand("", COMMANDS, argv)


def main(argv: list[str] | None = None) -> int:
    """Entry point. Returns the exit code: 0, 1 for a PeltonError, 2 for wrong usage, 130 for Ctrl-C."""
    try:
        with named_output():
            return _run(sys.argv[1:] if argv is None else argv)
    except PeltonError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        missing = missing_part(error)
        if missing is None:
            raise
        return _fail(str(missing))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output left, as `head` does
        drop(sys.stdout)
        return 0
    except OSError as error:  # a file the user named; what has no name is a defect and keeps its traceback
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}")


def _fail(text: str) -> int:
    with suppress(OSError):  # standard error may be on the same full disk
        print(f"pelton: error: {' '.join(text.split())}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
