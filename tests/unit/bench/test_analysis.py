import json

import msgspec
import pytest
from helpers.bench import later, request, result, spec

from pelton.bench.analysis import AnalysisOptions, WatchOptions
from pelton.bench.command import strict_status
from pelton.bench.files import read_result, write_result
from pelton.bench.options import ReportOptions
from pelton.bench.report.command import run_report
from pelton.bench.results import Analysis, HardwareFacts
from pelton.bench.target import _hardware
from pelton.config import ModelConfig
from pelton.errors import ConfigError

LLAMA = {"architectures": ["LlamaForCausalLM"], "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
         "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
         "torch_dtype": "bfloat16", "rms_norm_eps": 1e-5, "model_type": "llama", "hidden_act": "silu"}


@pytest.fixture
def config_dir(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return str(tmp_path)


@pytest.mark.parametrize(("options", "message"), [
    ({"goodput": "ttft"}, "goodput"), ({"price_per_hour": 0.0}, "price_per_hour must be above 0"),
    ({"gpu": "H200"}, "together with model_config"), ({"model_config": "x"}, "together with model_config"),
    ({"num_gpus": 0}, "num_gpus must be at least 1"), ({"weight_dtype": "fp7"}, "weight_dtype must be auto or one of"),
    ({"kv_cache_dtype": "fp7"}, "kv_cache_dtype must be one of")])
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        AnalysisOptions(**options)


def test_what_is_not_given_is_kept(config_dir):
    known = Analysis(goodput={"ttft": 5.0}, price_per_hour=2.0)
    assert AnalysisOptions().make(known) == known
    made = AnalysisOptions(goodput="tpot:3", gpu="h200", model_config=config_dir).make(known)
    assert made.goodput == {"tpot": 3.0}
    assert made.price_per_hour == 2.0
    assert made.hardware.gpu == "H200"
    assert msgspec.convert(made.hardware.model, ModelConfig).num_layers == 32


def test_a_gpu_that_nobody_knows_is_refused(config_dir):
    with pytest.raises(ConfigError, match="gpu must be one of"):
        AnalysisOptions(gpu="H900", model_config=config_dir).make()


def test_gpus_are_watched_where_the_server_runs_unless_told_otherwise():
    assert WatchOptions().gpus_to_watch("127.0.0.1") == ()
    assert WatchOptions().gpus_to_watch("10.0.0.7") is None
    assert WatchOptions(watch_gpus=True, gpu_indices=(1,)).gpus_to_watch("10.0.0.7") == (1,)
    assert WatchOptions(watch_gpus=False).gpus_to_watch("localhost") is None
    assert WatchOptions().url_to_watch("http://a:1") == "http://a:1/metrics"
    assert WatchOptions(watch_server=False).url_to_watch("http://a:1") is None


def test_a_pelton_server_says_what_it_serves_and_others_do_not(config_dir):
    model = AnalysisOptions(gpu="H200", model_config=config_dir).make().hardware.model
    told = _hardware({"id": "m", "pelton": {"gpu": "NVIDIA H200", "model": model, "kv_cache_dtype": "bfloat16"}})
    assert (told.source, told.gpu) == ("server", "NVIDIA H200")
    assert _hardware({"id": "m"}) is None
    assert _hardware({"id": "m", "pelton": {"gpu": "an unknown one", "model": model}}) is None
    assert _hardware({"id": "m", "pelton": {"gpu": "H200", "model": {"size": 7}}}) is None


def test_a_stored_result_is_held_against_other_limits(tmp_path, config_dir, capsys):
    quick = [later(request(), 17_001 * i, index=i) for i in range(20)]  # 16 tokens in 10 ms, then 500 tokens/s
    made = result([(spec(num_requests=20), quick)])
    write_result(made, tmp_path)
    assert run_report(ReportOptions(results=str(tmp_path), strict=True)) == 0
    assert run_report(ReportOptions(results=str(tmp_path), strict=True, gpu="RTX A6000", model_config=config_dir,
                                    goodput="ttft:5", output=str(tmp_path / "again.html"))) == 3
    page = (tmp_path / "again.html").read_text()
    assert "stream_above_limit" in page
    assert read_result(tmp_path / "results.json") == made
    assert capsys.readouterr().out.count(".html") == 2


def test_strict_is_about_failed_cells_alone():
    few = result([(spec(concurrency=4, num_requests=1), [request()])])
    assert strict_status(few) == 3
    noted = result([(spec(), [request()])])
    assert noted.findings
    assert strict_status(noted) == 0


def test_facts_read_back(config_dir):
    facts = AnalysisOptions(gpu="A100", model_config=config_dir, num_gpus=2).make().hardware
    assert msgspec.json.decode(msgspec.json.encode(facts), type=HardwareFacts) == facts
