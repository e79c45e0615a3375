"""`pelton bench report`: a stored result's report, made again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pelton.bench.audit import audit
from pelton.bench.command import print_json, strict_status
from pelton.bench.files import read_result
from pelton.bench.options import ReportOptions
from pelton.bench.report.page import write_report
from pelton.bench.summary import recompute


def run_report(options: ReportOptions) -> int:
    """Reads the result, audits and draws it; prints the report's path. Returns the exit status.

    Raises:
        ConfigError: the result cannot be read or the report not written.
    """
    source = Path(options.results).expanduser()
    if source.is_dir():
        source = source / "results.json"
    result = read_result(source)
    result = recompute(msgspec.structs.replace(result, analysis=options.make(result.analysis)))
    result = msgspec.structs.replace(result, findings=audit(result))
    output = source.with_name("report.html") if options.output is None else Path(options.output).expanduser()
    write_report(result, output)
    if options.json:
        print_json({"report": str(output), "status": result.status})
    else:
        print(output)
    return strict_status(result) if options.strict else 0
