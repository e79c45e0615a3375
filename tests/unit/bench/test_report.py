import json
import re
import shutil
import subprocess

import plotly.graph_objects as go
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.files import write_result
from pelton.bench.options import ReportOptions
from pelton.bench.report.command import run_report
from pelton.bench.report.page import render
from pelton.bench.report.plots import make_plots
from pelton.errors import ConfigError

CELLS = [(spec(concurrency=c, prompt_tokens=size, num_requests=20), [
    later(request(server_prompt_tokens=size, client_prompt_tokens=size), 17_001 * (i // c), index=i)
    for i in range(20)]) for c in (1, 2) for size in (16, 900)]


@pytest.fixture(scope="module")
def made():
    return result(CELLS)


@pytest.fixture(scope="module")
def page(made):
    return render(made)


def test_plots_are_valid_figures_with_units(made):
    plots = make_plots(made)
    assert [p.id for p in plots] == ["ttft-over-tokens", "throughput", "inter-token", "ttft-over-prompt"]
    for plot in plots:
        figure = go.Figure(plot.figure)
        assert len(figure.data) == 2
        assert figure.layout.xaxis.title.text
        assert "(" in figure.layout.yaxis.title.text


def test_first_plot_is_p95_ttft_over_measured_tokens_in_flight(made):
    figure = make_plots(made)[0].figure
    long = next(trace for trace in figure["data"] if trace["name"] == "900 tokens in")
    cells = [c for c in made.cells if c.requested_prompt_tokens == 900]
    assert long["x"] == [pytest.approx(c.value("in_flight_requests") * 900, rel=1e-3) for c in cells]
    assert long["y"] == [10.0, 10.0]
    assert figure["layout"]["xaxis"]["type"] == "log"


def test_cells_the_audit_failed_are_drawn_hollow():
    plots = make_plots(result([
        (spec(concurrency=8, num_requests=20), [later(request(), 17_001 * i, index=i) for i in range(20)]),
        (spec(prompt_tokens=900, num_requests=20), [
            later(request(server_prompt_tokens=900), 17_001 * i, index=i) for i in range(20)])]))
    symbols = [trace["marker"]["symbol"] for trace in plots[0].figure["data"]]
    assert symbols[0][0].endswith("-open")
    assert not symbols[1][0].endswith("-open")


def test_page_asks_no_network_for_anything(page):
    own = re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.DOTALL)  # everything but plotly.js
    assert len(own) < 200_000
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|<link|<iframe""", own)
    assert "default-src 'none'" in page
    assert "plotly.js" in page


def test_findings_stand_before_plots_and_definitions_after(page):
    assert page.index("<h2>Audit") < page.index('id="ttft-over-tokens"') < page.index("<h2>Latency") < page.index(
        "<h2>Definitions")
    assert "prefers-color-scheme: dark" in page
    assert "usage.prompt_tokens, one per request" in page


def test_text_from_the_server_cannot_become_markup():
    evil = "</script><script>alert(1)</script><img src=x>"
    page = render(result([(spec(), [request(error="http_500", error_message=evil)])], target={"model": evil}))
    assert "<script>alert" not in page
    assert "<img" not in page
    figures = re.search(r'id="figures">(.*?)</script>', page).group(1)
    assert isinstance(json.loads(figures), dict)


def test_result_without_a_single_cell_still_has_a_page():
    page = render(result([], status="partial", stop_reason="interrupted"))
    assert "Partial result: interrupted" in page
    assert len(page) < 200_000  # nothing to draw, so no plotly.js


def test_report_is_made_again_from_file_or_directory(made, tmp_path, capsys):
    write_result(made, tmp_path)
    assert run_report(ReportOptions(results=str(tmp_path))) == 0
    assert run_report(ReportOptions(results=str(tmp_path / "results.json"), output=str(tmp_path / "r.html"),
                                    json=True)) == 0
    assert (tmp_path / "report.html").read_bytes() == (tmp_path / "r.html").read_bytes()
    assert json.loads(capsys.readouterr().out.splitlines()[1])["report"] == str(tmp_path / "r.html")


def test_report_of_nothing(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        run_report(ReportOptions(results=str(tmp_path)))


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no chromium here")
def test_browser_draws_every_plot(page, tmp_path):
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--proxy-server=127.0.0.1:9", "--virtual-time-budget=8000", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([BROWSER, *flags, "--dump-dom", path.as_uri()], capture_output=True, timeout=120,
                         check=True).stdout.decode()
    drawn = re.findall(r'<div class="plot[^"]*js-plotly-plot[^"]*" id="([\w-]+)"', dom)
    assert drawn == ["ttft-over-tokens", "throughput", "inter-token", "ttft-over-prompt"]
    assert dom.count('class="scatterlayer') == 4
