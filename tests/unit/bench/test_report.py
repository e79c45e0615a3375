import json
import re

import msgspec
import plotly.graph_objects as go
import pytest
from helpers.bench import later, request, result, spec
from helpers.browser import BROWSER, NO_BROWSER, browse, drawings

from pelton.bench.compare.workload import workload_hash
from pelton.bench.files import write_result
from pelton.bench.load.stages import read_stages
from pelton.bench.options import ReportOptions
from pelton.bench.report.command import run_report
from pelton.bench.report.markdown import summary
from pelton.bench.report.page import render
from pelton.bench.report.plots import make_plots
from pelton.bench.report.view import ReportView
from pelton.bench.results import Analysis, HardwareFacts, LoadSpec, SearchResult, SearchStep, Series, SessionSpec
from pelton.bench.summary import recompute
from pelton.bench.table import make_console, search_table
from pelton.config import ModelConfig
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


PLOTS = ["ttft-over-tokens", "heat-maps", "pareto", "throughput", "inter-token", "ttft-over-prompt", "distributions",
         "timeline"]


def test_plots_are_valid_figures_with_units(made):
    plots = make_plots(made)
    assert [p.id for p in plots] == PLOTS
    for plot in plots:
        for figure in plot.figures.values():
            drawn = go.Figure(figure)
            assert len(drawn.data) >= 1
            assert drawn.layout.xaxis.title.text
            assert drawn.layout.yaxis.title.text


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


def test_the_set_up_tells_the_protocol_and_what_else_requests_held():
    shown = result(CELLS[:1], target={"protocol": "ollama", "extra_inputs": {"num_ctx": 4096}},
                   workload={"session": SessionSpec(num_turns=4, turn_tokens=9, think_time_s=0.5)})
    page, text = render(shown), summary(ReportView(shown), [])
    assert "<dt>further fields of the requests</dt><dd>{&quot;num_ctx&quot;:4096}</dd>" in page
    for line in ("protocol: ollama",
                 'further fields of the requests: {"num_ctx":4096}', f"hash: {workload_hash(shown)}",
                 "conversations: 4 turns, 9 tokens more in each, 0.5 s of thought on average"):
        assert line in text


def tiles(made):
    """What stands at the head of the page: name -> value, and the line in place of what no cell has."""
    inner = re.search(r'<div class="tiles">(.*?)</header>', render(made)).group(1)
    return ({name: value for value, name in re.findall(r"<div><b>(.*?)</b><span>(.*?)</span></div>", inner)},
            "".join(re.findall(r"<p>(.*?)</p>", inner)))


FAILED = (spec(concurrency=8, num_requests=20), [  # never eight at once, and quicker than any other
    later(request(first_content_us=5000), 17_001 * (i // 4), index=i) for i in range(20)])
SOUND = (spec(prompt_tokens=900, num_requests=20), [
    later(request(server_prompt_tokens=900, client_prompt_tokens=900), 17_001 * i, index=i) for i in range(20)])


def test_figures_at_the_head_are_not_those_of_failed_cells():
    alone, none = tiles(result([SOUND]))
    assert (alone["cell measured"], alone["lowest median TTFT"], none) == ("1", "10.0 ms", "")
    both, none = tiles(result([SOUND, FAILED]))
    assert (both["cells measured"], both["lowest median TTFT"], none) == ("2", "10.0 ms", "")
    assert both["peak output tokens/s"] == alone["peak output tokens/s"]


def test_where_all_cells_failed_the_head_says_so():
    shown, none = tiles(result([FAILED]))
    assert shown == {"cell measured": "1", "requests": "20"}
    assert none.startswith("No cell is sound enough for peak output tokens/s or lowest median TTFT")
    assert tiles(result([])) == ({"cells measured": "0", "requests": "0"}, "")


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


def rich():
    """A search with everything that a report can show: rates, targets, gauges, GPUs, hardware, several output sizes."""
    model = ModelConfig(architecture="LlamaForCausalLM", vocab_size=1000, hidden_size=64, intermediate_size=128,
                        num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, max_position_embeddings=2048)
    analysis = Analysis(goodput={"ttft": 12.0}, price_per_hour=2.0, hardware=HardwareFacts(
        gpu="H200", model=msgspec.to_builtins(model), source="options"))
    series = [Series(source=source, name=name, unit="", at_us=[0, 100_000, 200_000], values=[1.0, 3.0, 2.0])
              for source, name in (("gpu", "power"), ("gpu", "utilization"), ("server", "vllm:num_requests_running"),
                                   ("server", "tokens_total"))]
    rates = [LoadSpec(kind="poisson", rate=rate, num_requests=20) for rate in (1.0, 2.0)]
    cells = CELLS + [(spec(load=load, prompt_tokens=size, output_tokens=8), CELLS[0][1]) for load in rates
                     for size in (16, 900)]
    staged = LoadSpec(kind="closed_stages", concurrency=2, stages=read_stages("c1:0.2,c2:0.2"))
    cells.append((spec(load=staged, prompt_tokens=16, output_tokens=9), [msgspec.structs.replace(
        r, stage=staged.stages[r.index // 10].name) for r in CELLS[0][1]]))
    steps = [SearchStep(level=1.0, cell="r1-p16-o8", passed=True, reason="in time"),
             SearchStep(level=2.0, cell="r2-p16-o8", passed=False, reason="late")]
    search = SearchResult(variable="request_rate", criterion="within", best=1.0, least_failed=2.0, is_settled=True,
                          steps=steps)
    return recompute(result(cells, kind="search", search=search, analysis=analysis, series=series))


@pytest.mark.skipif(BROWSER is None, reason=NO_BROWSER)
@pytest.mark.parametrize("is_rich", [False, True])
def test_browser_draws_every_figure_without_a_network(made, is_rich, tmp_path):
    shown = rich() if is_rich else made
    plots = make_plots(shown)
    found = browse(render(shown), tmp_path)
    expected = drawings(plots)
    assert found == {"drawn": expected, "faults": [], "resources": []}
    if is_rich:
        assert set(expected) == {*PLOTS, "search", "server-metrics", "goodput", "stages"}


def test_search_cost_and_client_have_tables():
    page = render(rich())
    assert "Levels in the order in which they were tried" in page
    assert "Cost of a million output tokens<br>per 1M tokens" in page
    assert 'id="goodput"' in page
    assert "1 × H200, told by the options" in page


def searched(num_requests):
    """A search that found 8 in flight, in a cell with so many requests one after another in each of its slots."""
    cells = [(spec(concurrency=c, num_requests=20), [later(request(), 17_001 * (i // min(c, num_requests)), index=i)
                                                     for i in range(20)]) for c in (1, 8)]
    steps = [SearchStep(level=float(c), cell=f"c{c}-p16-o4", passed=True, reason="in time") for c in (1, 8)]
    return result(cells, kind="search", search=SearchResult(
        variable="concurrency", criterion="within", best=8.0, least_failed=None, is_settled=True, steps=steps))


def heads(made, capsys):
    """What a search found, as each report says it."""
    make_console().print(search_table(made))
    plot = next(p for p in make_plots(made) if p.id == "search")
    return plot, summary(ReportView(made), []), " ".join(capsys.readouterr().out.split())


def test_what_a_search_found_is_no_answer_where_its_cell_failed(capsys):
    plot, text, table = heads(searched(8), capsys)
    assert (plot.title, "sound" in plot.caption) == ("Search: 8 requests in flight", False)
    assert "within: concurrency 8." in text
    assert "within: at least 8 in flight" in table
    plot, text, table = heads(searched(4), capsys)
    assert plot.title == "Search: no sound answer"
    assert "The audit failed the cell of what was found, 8 requests in flight." in plot.caption
    assert [t["name"] for t in plot.figure["data"]] == ["passed"]
    assert plot.figure["data"][0]["marker"]["symbol"] == ["circle", "circle-open"]
    assert "within: no sound answer, as the audit failed the cell of concurrency 8." in text
    assert "within: no sound answer, as the audit failed the cell of 8 in flight" in table


def test_an_engine_in_this_process_is_at_no_address():
    shown = result([SOUND], kind="throughput", target={"endpoint": "offline", "url": "in process"},
                   workload={"output_tokens": ["1"]})
    assert "<p>in process, offline, 1 output token a request. 31 January 2026" in render(shown)
    assert "\nin process, offline, 2026-01-31" in summary(ReportView(shown), [])
    assert "<p>chat at http://127.0.0.1:1, 4 output tokens a request." in render(result([SOUND]))


def test_lines_of_the_timeline_that_stand_in_one_legend_have_colours_of_their_own():
    """All that the client and the gauges of a server can show at once; two replicas have a cache each."""
    names = ["vllm:num_requests_running", "vllm:num_requests_waiting"] + ["vllm:kv_cache_usage_perc"] * 2
    watched = [Series(source="server", name=name, unit="", labels={"engine": f"{number}"}, at_us=[0, 100_000],
                      values=[0.0, 1.0]) for number, name in enumerate(names)]
    late = [later(request(scheduled_us=-9000), 17_001 * i, index=i) for i in range(20)]
    timeline = next(p for p in make_plots(result([(spec(num_requests=20), late)], series=watched))
                    if p.id == "timeline")
    shown = {(t["name"], t["meta"]["series"]) for t in timeline.figure["data"] if t["showlegend"]}
    assert {name for name, _ in shown} == {
        "in flight", "queued in the client", "server: running", "server: waiting", "server: cache in use",
        "first token: median", "first token: slowest"}
    assert len({color % 8 for _, color in shown}) == len(shown)
