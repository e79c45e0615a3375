"""Recipes: how engines are started, in YAML. Unknown keys are errors.

    variables:            # ${name} in the rest; --set name=value gives others
      model: pelton-tiny
    workload:             # options of pelton bench sweep, by their names
      concurrency: [1, 8]
      num_trials: 3
    engines:
      - name: pelton
        command: pelton serve ${model} --port ${port}
"""

from __future__ import annotations

import re
import shlex
import string
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

from pelton.errors import ConfigError

LOADS = ("concurrency", "request_rate", "stages")
SHAPES = (*LOADS, "ramp_up", "arrivals", "burstiness", "max_in_flight")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Engine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One server."""

    name: str
    command: str | None = None
    """Starts it in the foreground, on ${port} of the loopback address; none: it runs already, at url."""
    url: str | None = None
    """Where it answers; none: http://127.0.0.1:${port}."""
    health: str = "/health"
    """Route that answers 200 once requests can be served."""
    setup: list[str] = []
    """Commands run one after another once it is healthy, such as one that loads a model."""
    env: dict[str, str] = {}
    """Added to the environment of all its commands."""
    model: str | None = None
    """Name of the served model; none: the only one it lists."""
    tokenizer: str | None = None
    """Directory of the tokenizer; none: as for pelton bench sweep."""
    endpoint: Literal["chat", "completions"] = "chat"
    ready_timeout_s: float = 600.0
    """How long it may take to become healthy."""


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What one file says, or several joined."""

    variables: dict[str, str] = {}
    workload: dict[str, Any] = {}
    engines: list[Engine] = []

    def workload_argv(self, given: Collection[str] = ()) -> list[str]:
        """The workload as words of a command line, so that one reader checks both.

        Args:
            given: options that stand on the command line. A load there takes the place of another kind of load here,
                with all that belongs to it.

        Raises:
            ConfigError: a value that no option can have.
        """
        words: list[str] = []
        own = {key.replace("-", "_") for key in self.workload}
        is_replaced = any(name in given and name not in own for name in LOADS)
        for key, value in self.workload.items():
            flag = key.replace("_", "-")
            if is_replaced and flag.replace("-", "_") in SHAPES:
                continue
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            elif isinstance(value, list) and all(isinstance(item, int | float | str) for item in value):
                words.append(f"--{flag}={','.join(map(str, value))}")
            elif isinstance(value, int | float | str):
                words.append(f"--{flag}={value}")
            else:
                raise ConfigError(f"workload: {key} must be a number, a text or a list of them, got {value!r}")
        return words


def load_recipes(paths: Sequence[str], settings: Sequence[str] = ()) -> Recipe:
    """Reads recipe files and joins them: all their engines; of variables and workload the first that says.

    Args:
        settings: `name=value` for variables, above what the files say.

    Raises:
        ConfigError: a file cannot be read or is no recipe, names are wrong or come twice, a variable is not known.
    """
    files = [_read(Path(path).expanduser()) for path in paths]
    variables: dict[str, str] = {}
    workload: dict[str, Any] = {}
    for recipe in reversed(files):
        variables |= recipe.variables
        workload |= recipe.workload
    known = set(variables)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or name not in known:
            raise ConfigError(f"set must be NAME=VALUE with a variable of the recipe ({', '.join(sorted(known))}), "
                              f"got {setting!r}")
        variables[name] = value
    engines = [_fill(engine, variables) for recipe in files for engine in recipe.engines]
    names = [engine.name for engine in engines]
    if not engines or len(set(names)) < len(names):
        raise ConfigError(f"a recipe needs engines of different names, got {', '.join(names) or 'none'}")
    return Recipe(variables=variables, workload=workload, engines=engines)


def _read(path: Path) -> Recipe:
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        return msgspec.convert(data, Recipe)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {str(path)!r} is no YAML: {' '.join(str(error).split())}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"recipe {str(path)!r}: {error}") from None


def _fill(engine: Engine, variables: Mapping[str, str]) -> Engine:
    """The engine with its variables put in; ${port} is left for the moment of starting."""
    if not _NAME.fullmatch(engine.name):
        raise ConfigError(f"engine name must be letters, digits, dots, dashes and underscores, got {engine.name!r}")
    if (engine.command is None) == (engine.url is None):
        raise ConfigError(f"engine {engine.name!r} must have either a command or a url")
    values = {"port": "${port}", **variables}

    def fill(text: str | None) -> str | None:
        return None if text is None else fill_text(text, values, where=f"engine {engine.name!r}")

    return msgspec.structs.replace(
        engine, command=fill(engine.command), url=fill(engine.url), model=fill(engine.model),
        tokenizer=fill(engine.tokenizer), setup=[fill(text) for text in engine.setup],
        env={key: fill(value) for key, value in engine.env.items()})


def fill_text(text: str, values: Mapping[str, str], *, where: str) -> str:
    """Puts values in the place of ${name}.

    Raises:
        ConfigError: a name without a value, or a lone $.
    """
    try:
        return string.Template(text).substitute(values)
    except KeyError as error:
        raise ConfigError(f"{where}: the variable ${{{error.args[0]}}} has no value; the recipe has "
                          f"{', '.join(sorted(values))}") from None
    except ValueError as error:
        raise ConfigError(f"{where}: {error} in {text!r}; write $$ for a dollar sign") from None


def split_command(text: str, *, where: str) -> list[str]:
    """A command line as words, as a shell would split it; no shell runs it.

    Raises:
        ConfigError: an open quotation, or nothing.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{where}: {error} in {text!r}") from None
    if not words:
        raise ConfigError(f"{where}: the command is empty")
    return words
