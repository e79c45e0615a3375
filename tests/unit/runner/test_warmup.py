"""What is run before an engine is ready: the numbers of tokens, and products as the model runs them."""

from __future__ import annotations

import gc

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, make_checkpoint

from pelton.checkpoint.hf_config import load_model_config
from pelton.config import ModelConfig
from pelton.kernels.linear import reference
from pelton.manifest import Limits
from pelton.models.decoder import Decoder
from pelton.runner import graphs
from pelton.runner.padding import token_sizes
from pelton.runner.random_weights import make_random_weights
from pelton.runner.runner import Runner, Step
from pelton.runner.warmup import token_counts, warm_up


@pytest.mark.parametrize("most", [1, 2, 5, 64, 8192])
def test_prompts_reach_both_sides_of_powers_of_two(most):
    counts = token_counts(most)
    assert {1, most} <= set(counts)
    assert max(counts) == most
    for power in (2, 4, 16, 1024):
        if power < most:
            assert {power, power + 1} <= set(counts)


@pytest.mark.parametrize(("max_batch_size", "max_num_tokens", "max_seq_len"),
                         [(4, 400, 64), (1, 300, 40), (8, 1, 33), (2, 24, 400)])
def test_every_step_of_it_runs_and_leaves_nothing(monkeypatch, max_batch_size, max_num_tokens, max_seq_len):
    """On a CPU, which needs no warming: the batches are those of a GPU."""
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    config = ModelConfig(architecture="LlamaForCausalLM", vocab_size=96, hidden_size=32, intermediate_size=48,
                         num_layers=1, num_heads=4, num_kv_heads=2, head_dim=16, max_position_embeddings=512,
                         dtype="float32")
    limits = Limits(max_batch_size=max_batch_size, max_seq_len=max_seq_len, max_input_len=max_seq_len - 1,
                    max_num_tokens=max_num_tokens, tokens_per_block=16)
    runner = Runner.from_weights(config, make_random_weights(config, torch.float32), limits, num_blocks=30)
    done, errors = [], []
    for name in ("run_products", "capture_graphs"):
        monkeypatch.setattr(runner, name, lambda *args, name=name: done.append((name, *args)))
    monkeypatch.setattr(Step, "run", lambda step, job, run=Step.run: (run(step, job), errors.append(step._error)))
    warm_up(runner, lambda: done.append(("weights",)))
    runner.close()
    assert not any(errors)
    assert len(errors) > 50
    assert not runner._slots.is_taken.any()
    products = [("run_products", size) for size in token_sizes(max_num_tokens)]
    assert done == [*products, ("weights",), ("capture_graphs",)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_products_of_a_layer_are_run_in_their_shapes(architecture, tmp_path, monkeypatch):
    seen = []

    def linear(x, weight, *args, inner=reference.linear, **options):
        seen.append((x.shape[0], *weight.data.shape, options["act"], options["residual"] is not None))
        return inner(x, weight, *args, **options)

    config = load_model_config(make_checkpoint(architecture, tmp_path))
    monkeypatch.setattr(reference, "linear", linear)
    decoder = Decoder(config, make_random_weights(config, torch.float32), implementation="reference")
    decoder.run_products(7)
    q_size, is_fused = config.q_size, not config.sandwich_norm
    assert seen == [(7, q_size + 2 * config.kv_size, config.hidden_size, None, False),
                    (7, config.hidden_size, q_size, None, is_fused),
                    (7, 2 * config.intermediate_size, config.hidden_size, config.activation, False),
                    (7, config.hidden_size, config.intermediate_size, None, is_fused)]


class Graph:
    """Notes what is done with a graph."""

    all: list = []  # noqa: RUF012

    def capture_begin(self, **options):
        self.calls = [("begin", options)]
        Graph.all.append(self)

    def capture_end(self):
        self.calls.append("end")

    def replay(self):
        self.calls.append("replay")


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_collects_no_garbage_and_is_replayed_once(monkeypatch, fails):
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(Graph, "all", [])
    monkeypatch.setattr(graphs, "_alias", lambda tensor: tensor)
    were_enabled = []

    def run():
        were_enabled.append(gc.isenabled())
        if fails and len(were_enabled) == 2:
            raise RuntimeError("not while capturing")
        return torch.zeros(1)

    if fails:
        with pytest.raises(RuntimeError, match="not while"):
            graphs.capture_graph(run, "pool")
    else:
        graphs.capture_graph(run, "pool")
    begin = ("begin", {"pool": "pool", "capture_error_mode": "thread_local"})
    assert Graph.all[0].calls == [begin, "end", *([] if fails else ["replay"])]
    assert were_enabled == [True, False]
    assert gc.isenabled()
