"""The records a benchmark writes, and their schema: one noun a file, all to be imported from here.

Times of a request are whole microseconds since the run began, on one monotonic clock. Every metric can be computed
again from the requests alone. Readers (`pelton.bench.files`) refuse another schema version.
"""

from pelton.bench.results.analysis import NO_ANALYSIS, Analysis, Finding, HardwareFacts
from pelton.bench.results.cell import CellResult, StageResult, Status, Window
from pelton.bench.results.client import ClientError, ClientLoad, Stall
from pelton.bench.results.figure import Distribution, MetricDefinition, MetricResult, Percentile
from pelton.bench.results.load import LoadKind, LoadSpec, LoadStage
from pelton.bench.results.record import Record
from pelton.bench.results.request import RequestRecord, TokenCountSource
from pelton.bench.results.run import SCHEMA, RunResult
from pelton.bench.results.search import Evidence, SearchResult, SearchStep
from pelton.bench.results.series import Series
from pelton.bench.results.target import Environment, TargetInfo
from pelton.bench.results.workload import SYNTHETIC, PromptSpec, SessionSpec, Workload

__all__ = [
    "Analysis", "CellResult", "ClientError", "ClientLoad", "Distribution", "Environment", "Evidence", "Finding",
    "HardwareFacts", "LoadKind", "LoadSpec", "LoadStage", "MetricDefinition", "MetricResult", "NO_ANALYSIS",
    "Percentile", "PromptSpec", "Record", "RequestRecord", "RunResult", "SCHEMA", "SYNTHETIC", "SearchResult",
    "SearchStep", "Series", "SessionSpec", "StageResult", "Stall", "Status", "TargetInfo", "TokenCountSource",
    "Window", "Workload",
]
