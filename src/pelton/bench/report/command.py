"""`pelton bench report`: a stored result's report, made again, in the formats that are asked for."""

from __future__ import annotations

from pathlib import Path

import msgspec

from pelton.bench.audit import audit
from pelton.bench.command import print_json, strict_status
from pelton.bench.files import prepare_output_dir, read_result, to_json, write_atomic
from pelton.bench.options import ReportOptions
from pelton.bench.report.csv_tables import cells_csv, requests_csv, stages_csv
from pelton.bench.report.draw.export import picture_name, pictures
from pelton.bench.report.figure import Plot
from pelton.bench.report.markdown import summary
from pelton.bench.report.page import write_report
from pelton.bench.report.plots import make_plots
from pelton.bench.report.view import ReportView
from pelton.bench.results import RunResult
from pelton.bench.summary import recompute


def run_report(options: ReportOptions) -> int:
    """Reads the result, audits and draws it; prints the paths of what was written. Returns the exit status.

    Raises:
        ConfigError: the result cannot be read or a file not written.
    """
    source = Path(options.results).expanduser()
    if source.is_dir():
        source = source / "results.json"
    result = read_result(source)
    result = recompute(msgspec.structs.replace(result, analysis=options.make(result.analysis)))
    result = msgspec.structs.replace(result, findings=audit(result))
    output = source.with_name("report.html") if options.output is None else Path(options.output).expanduser()
    written = write_formats(result, output, options.format)
    if options.json:
        print_json({"report": written[0], "files": written, "status": result.status})
    else:
        print("\n".join(written))
    return strict_status(result) if options.strict else 0


def write_formats(result: RunResult, output: Path, formats: tuple[str, ...]) -> list[str]:
    """Writes the report beside `output`, which is the HTML file's path, and returns the paths: files, and the folder
    of the pictures.

    Raises:
        ConfigError: a file cannot be written.
    """
    plots = make_plots(result)
    folder = output.with_name(f"{output.stem}-plots")
    kinds = [kind for kind in ("svg", "png") if kind in formats]
    if "markdown" in formats and not kinds:
        kinds = ["svg"]
    written = []
    if "html" in formats:
        write_report(result, output)
        written.append(output)
    if "markdown" in formats:
        shown: list[tuple[Plot, str]] = [(p, f"{folder.name}/{picture_name(p, kinds[0])}") for p in plots]
        written.append(_write(output.with_suffix(".md"), summary(ReportView(result), shown).encode()))
    if "json" in formats:
        written.append(_write(output.with_suffix(".json"), to_json(result)))
    if "csv" in formats:
        written.append(_write(output.with_name("requests.csv"), requests_csv(result)))
        written.append(_write(output.with_name("cells.csv"), cells_csv(result)))
        if any(cell.stages for cell in result.cells):
            written.append(_write(output.with_name("stages.csv"), stages_csv(result)))
    for kind in kinds:
        prepare_output_dir(str(folder))
        for name, data in pictures(plots, kind):
            write_atomic(folder / name, data)
    return [str(path) for path in [*written, *([folder] if kinds else [])]]


def _write(path: Path, data: bytes) -> Path:
    write_atomic(path, data)
    return path
