"""`pelton bench engines`: measures the engines of a recipe beside each other and compares them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pelton.bench.agenda import FixedAgenda
from pelton.bench.calibrate import error_table
from pelton.bench.calibration_store import client_errors, level_of
from pelton.bench.command import INTERRUPTED, OPEN_LOOP_STREAMS
from pelton.bench.compare.command import compare_and_tell, status_of
from pelton.bench.compare.comparison import Named
from pelton.bench.engines.options import EnginesOptions
from pelton.bench.engines.process import ending_on_sigterm, running
from pelton.bench.engines.recipe import Engine, Recipe
from pelton.bench.engines.rounds import join_rounds
from pelton.bench.engines.same_model import Fingerprint, differences, fingerprint, remarks
from pelton.bench.files import prepare_output_dir, write_result
from pelton.bench.options import SweepOptions
from pelton.bench.progress import Progress
from pelton.bench.report.page import write_report
from pelton.bench.results import ClientError, RunResult
from pelton.bench.run import Run, execute, raise_if_failed
from pelton.bench.sweep import sweep_specs
from pelton.bench.table import make_console
from pelton.errors import ConfigError


def run_engines(recipe: Recipe, options: EnginesOptions, workload: Mapping[str, Any]) -> int:
    """Measures all engines and compares them, the first as the base. Returns the exit status.

    Args:
        workload: options of `pelton bench sweep`, from the recipe and the command line.

    Raises:
        PeltonError: wrong options, a server that cannot be started or fails, or that serves another model. What was
            measured of the others is kept, as are the logs.
    """
    session = Session(recipe, options, workload)
    with ending_on_sigterm():
        was_interrupted = session.measure()
    named = session.results()
    if was_interrupted:
        return INTERRUPTED
    if len(named) < 2:
        return 0
    return status_of(compare_and_tell(named, options))


class Session:
    """The rounds of all engines; each engine's result is written after each of its rounds."""

    def __init__(self, recipe: Recipe, options: EnginesOptions, workload: Mapping[str, Any]) -> None:
        self._engines = recipe.engines
        self._options = options
        self._workload = workload
        self._directory = prepare_output_dir(options.output_dir)
        self._rounds: dict[str, list[RunResult]] = {engine.name: [] for engine in self._engines}
        self._fingerprints: dict[str, Fingerprint] = {}
        self._errors: list[ClientError] = []
        plan = self._sweep(self._engines[0], "http://127.0.0.1:1")
        self._num_rounds = plan.num_trials
        if plan.calibrate:
            loads = [spec.load for spec in sweep_specs(plan)]
            self._errors = client_errors({level_of(load.concurrency or OPEN_LOOP_STREAMS) for load in loads})
            if not options.json:
                make_console().print(error_table(self._errors))

    def measure(self) -> bool:
        """All rounds: every engine once in each. Returns whether the user interrupted."""
        if self._options.keep_running:
            with contextlib.ExitStack() as servers:
                urls = {e.name: servers.enter_context(running(e, self._log(e))) for e in self._engines}
                return any(self._measure_once(engine, urls[engine.name])
                           for _ in range(self._num_rounds) for engine in self._engines)
        for _ in range(self._num_rounds):
            for engine in self._engines:
                with running(engine, self._log(engine)) as url:
                    if self._measure_once(engine, url):
                        return True
        return False

    def results(self) -> list[Named]:
        """The joined result of every engine that was measured."""
        return [Named(name, str(self._directory / name / "results.json"), join_rounds(rounds))
                for name, rounds in self._rounds.items() if rounds]

    def _measure_once(self, engine: Engine, url: str) -> bool:
        options = self._sweep(engine, url)
        if engine.name not in self._fingerprints:
            self._check_model(engine, options)
        self._say(f"round {len(self._rounds[engine.name]) + 1} of {self._num_rounds}: {engine.name}")
        once = dataclasses.replace(options, num_trials=1)
        result = execute(Run("sweep", once, FixedAgenda(sweep_specs(once), num_trials=1),
                             progress=Progress(is_silent=self._options.json), client_errors=self._errors))
        self._rounds[engine.name].append(result)
        directory = prepare_output_dir(str(self._directory / engine.name))
        joined = join_rounds(self._rounds[engine.name])
        write_result(joined, directory)
        write_report(joined, directory / "report.html")
        raise_if_failed(result, str(directory))
        return result.stop_reason == "interrupted"

    def _check_model(self, engine: Engine, options: SweepOptions) -> None:
        """Raises a ConfigError when the engine serves another model than the first, or by another route, unless
        forced."""
        found = asyncio.run(fingerprint(options))
        self._fingerprints[engine.name] = found
        first = next(iter(self._fingerprints))
        if first == engine.name:
            return
        base = self._fingerprints[first]
        against = list(differences(base, found))
        if against and not self._options.force:
            raise ConfigError(f"engine {engine.name!r} does not serve the same model, or not alike, as {first!r}: "
                              f"{'; '.join(against)}; give force to measure it all the same")
        for text in (*against, *remarks(base, found)):
            self._say(f"{engine.name} beside {first}: {text}")

    def _sweep(self, engine: Engine, url: str) -> SweepOptions:
        given = dict(self._workload)
        if engine.tokenizer is not None:
            given["tokenizer"] = engine.tokenizer
        return SweepOptions(**{**given, "url": url, "model": engine.model, "endpoint": engine.endpoint,
                               "output_dir": str(self._directory / engine.name), "json": self._options.json})

    def _log(self, engine: Engine) -> Path:
        return prepare_output_dir(str(self._directory / engine.name)) / "server.log"

    def _say(self, text: str) -> None:
        if not self._options.json:
            make_console().print(text, highlight=False, markup=False)
