"""Pelton: an LLM inference stack. The names below are the public ones; each is imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTS = {
    "LLM": "pelton.engine.llm",
    "RequestOutput": "pelton.engine.llm",
    "CompletionOutput": "pelton.engine.llm",
    "Executor": "pelton.engine.executor",
    "ModelRunner": "pelton.engine.model_runner",
    "SamplingParams": "pelton.types",
    "Request": "pelton.types",
    "Output": "pelton.types",
    "ExecutorConfig": "pelton.config",
    "KvCacheConfig": "pelton.config",
    "BuildConfig": "pelton.config",
    "PeltonError": "pelton.errors",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _EXPORTS:
        raise AttributeError(f"module 'pelton' has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pelton")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0.0.0"


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
