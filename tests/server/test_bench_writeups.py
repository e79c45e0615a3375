"""The set-ups of published write-ups, measured again on a real server: the audit must catch what fooled their authors.

They sent the same text over and over to a server with a prefix cache, 32 requests "at concurrency 64", and sizes of 16,
32 and 64 tokens under a template that is longer; and they reported first tokens and rates that the GPU they named
cannot reach.
"""

import json
from importlib.resources import files

import msgspec
import pytest
from helpers.real_server import serving

from pelton.bench.audit import audit, verdicts
from pelton.bench.files import read_result
from pelton.bench.options import SweepOptions
from pelton.bench.sweep import run_sweep
from pelton.errors import ConfigError

SYSTEM = "You are a helpful assistant. Answer in full sentences, and say so where you do not know. " * 6
TINY = files("pelton") / "models_data" / "pelton-tiny"
LLAMA_2_13B = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000, "hidden_size": 5120,
               "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40,
               "num_key_value_heads": 40, "max_position_embeddings": 4096, "torch_dtype": "float16",
               "rms_norm_eps": 1e-5, "hidden_act": "silu"}
STRICT_FAILURE = 3


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("writeups")
    template = folder / "template.jinja"
    own = (TINY / "chat_template.jinja").read_text()
    template.write_text(SYSTEM + own)
    with serving(folder / "log", "--chat-template", str(template)) as running:
        yield running


@pytest.fixture
def repeated(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("the time of the day and the size of the thing ")
    return str(path)


@pytest.fixture
def model_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_13B))
    return str(tmp_path)


def sweep(server, folder, **options):
    """(exit status, result)."""
    fields = {"output_tokens": ("4",), "num_warmup": 0, "output_dir": str(folder / "out"), "calibrate": False,
              "strict": True, "request_timeout": 60.0, **options}
    status = run_sweep(SweepOptions(url=server.url, **fields))
    return status, read_result(folder / "out" / "results.json")


def found(result, name):
    return next((f for f in result.findings if f.name == name), None)


@pytest.mark.timeout(180)
def test_repeated_text_few_requests_and_sizes_under_the_template(server, tmp_path, repeated):
    status, result = sweep(server, tmp_path, concurrency=(64,), prompt_tokens=("16", "32", "64"), num_requests=32,
                           prompt_repeat_text=repeated)
    sizes = {cell.distribution("prompt_tokens").p50 for cell in result.cells}
    assert len(sizes) == 1
    collapsed = found(result, "prompt_sizes_collapsed")
    assert f"sizes 16, 32, 64 were all {sizes.pop():.0f} tokens" in collapsed.evidence
    assert "at most 32 in flight of 64" in found(result, "concurrency_not_reached").evidence
    assert found(result, "prompts_repeat")
    assert set(verdicts(result).values()) == {"failed"}
    assert status == STRICT_FAILURE


@pytest.mark.timeout(180)
def test_a_prefix_cache_that_answers_for_the_model_on_a_gpu_that_could_not(server, tmp_path, repeated, model_config):
    status, result = sweep(server, tmp_path, concurrency=(1,), prompt_tokens=("480",), num_requests=12,
                           prompt_repeat_text=repeated, gpu="RTX A6000", model_config=model_config)
    assert status == STRICT_FAILURE
    assert "of their tokens" in found(result, "prompts_cached").evidence
    assert "one stream on the RTX A6000 is limited to" in found(result, "stream_above_limit").evidence
    # A server that keeps quiet about its cache is caught by the GPU's arithmetic.
    silent = msgspec.structs.replace(
        result, requests=[msgspec.structs.replace(r, cached_tokens=None) for r in result.requests])
    silent = msgspec.structs.replace(silent, findings=audit(silent))
    assert not found(silent, "prompts_cached")
    assert "480 tokens took" in found(silent, "ttft_below_floor").evidence
    assert "and the RTX A6000 needs" in found(silent, "ttft_below_floor").evidence


@pytest.mark.timeout(180)
def test_answers_that_end_when_they_please_are_compared_with_a_warning(server, tmp_path):
    _, result = sweep(server, tmp_path, concurrency=(2,), prompt_tokens=("200",), output_tokens=("48",),
                      num_requests=16, fixed_output=False, temperature=1.0)
    lengths = {r.output_tokens for r in result.requests}
    if lengths == {48}:
        pytest.skip("no answer of the small model ended by itself")
    assert "tokens instead of 48" in found(result, "output_lengths_differ").evidence


@pytest.mark.timeout(180)
def test_sizes_below_the_template_are_refused_with_its_size(server, tmp_path):
    with pytest.raises(ConfigError, match=r"template"):
        sweep(server, tmp_path, concurrency=(1,), prompt_tokens=("16",), num_requests=2)


@pytest.mark.timeout(180)
def test_prompts_of_their_own_are_sound(server, tmp_path):
    status, result = sweep(server, tmp_path, concurrency=(2,), prompt_tokens=("200", "400"), num_requests=12)
    assert not [f for f in result.findings if f.severity == "failure" and f.name != "cells_compare_different_work"]
    assert status == 0
