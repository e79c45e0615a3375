"""Whole models against transformers on small random checkpoints: logits, greedy tokens, chunks, mixes, ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from helpers.checkpoints import ARCHITECTURES, load_reference, make_checkpoint
from helpers.paged import PagedDriver, load_config, load_weights

from pelton.cache.pool import KvPool
from pelton.config import ModelConfig
from pelton.kernels.attention.metadata import AttentionMetadata
from pelton.models.decoder import Decoder
from pelton.models.registry import get_architecture
from pelton.models.weights import stage_layers

LIMIT = 1e-4
NUM_GREEDY = 64
_FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0]}
_LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75, **_FACTORS}


def _scaled(kind: str, **options) -> dict:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **options}}


VARIANTS: dict[str, tuple[str, dict]] = {
    **{name.removesuffix("ForCausalLM").lower(): (name, {}) for name in ARCHITECTURES},
    "llama-biases": ("LlamaForCausalLM", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-linear": ("LlamaForCausalLM", _scaled("linear", factor=4.0)),
    "llama-llama3": ("LlamaForCausalLM", _scaled("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                                 original_max_position_embeddings=64)),
    "llama-yarn": ("LlamaForCausalLM", _scaled("yarn", factor=8.0, original_max_position_embeddings=64)),
    "llama-dynamic-within": ("LlamaForCausalLM", _scaled("dynamic", factor=2.0)),
    "llama-dynamic-past": ("LlamaForCausalLM", {"max_position_embeddings": 40, **_scaled("dynamic", factor=4.0)}),
    "llama-dynamic-crossing": ("LlamaForCausalLM", {"max_position_embeddings": 90, **_scaled("dynamic", factor=4.0)}),
    "mistral-no-window": ("MistralForCausalLM", {"sliding_window": None}),
    "qwen2-window": ("Qwen2ForCausalLM", {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 2}),
    "qwen3-biases": ("Qwen3ForCausalLM", {"attention_bias": True}),
    "gemma2-uncapped": ("Gemma2ForCausalLM", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "phi3-window": ("Phi3ForCausalLM", {"sliding_window": 30}),
    "phi3-longrope-short": ("Phi3ForCausalLM", {"original_max_position_embeddings": 256,
                                                "rope_parameters": dict(_LONGROPE)}),
    "phi3-longrope-long": ("Phi3ForCausalLM", {"original_max_position_embeddings": 64,
                                               "rope_parameters": dict(_LONGROPE)}),
}


@dataclass
class Case:
    """A checkpoint, and what transformers says of one prompt of it."""

    path: Path
    config: ModelConfig
    prompt: list[int]
    forced: list[int]
    """A continuation that nobody would draw, to compare decode steps by."""
    logits: torch.Tensor
    """[prompt + forced, V]; the positions of `forced` were run one by one."""
    greedy: list[int]

    def driver(self, dtype: torch.dtype = torch.float32, **options) -> PagedDriver:
        weights = {name: w.to(dtype) for name, w in load_weights(self.path, self.config).items()}
        return PagedDriver(Decoder(self.config, weights, **options))


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Two threads gain nothing at these sizes and lose much where the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_case(name: str, folder: Path) -> Case:
    architecture, overrides = VARIANTS[name]
    path = make_checkpoint(architecture, folder, with_tokenizer=False, **overrides)
    generator = torch.Generator().manual_seed(len(name))
    prompt, forced = torch.randint(6, 320, (100,), generator=generator).split([70, 30])
    with torch.no_grad():
        reference = load_reference(path)
        out = reference(prompt[None], use_cache=True)
        logits = [out.logits[0]]
        for token in forced:
            out = reference(token.view(1, 1), past_key_values=out.past_key_values, use_cache=True)
            logits.append(out.logits[0])
        # A fresh model: dynamic scaling remembers the longest sequence it has seen.
        greedy = load_reference(path).generate(prompt[None], max_new_tokens=NUM_GREEDY, min_new_tokens=NUM_GREEDY,
                                               do_sample=False, pad_token_id=2)[0, len(prompt):]
    return Case(path, load_config(path), prompt.tolist(), forced.tolist(), torch.cat(logits), greedy.tolist())


@pytest.fixture(scope="module", params=VARIANTS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(request.param, tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module", params=[name.removesuffix("ForCausalLM").lower() for name in ARCHITECTURES])
def plain_case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """The six architectures without variations."""
    return make_case(request.param, tmp_path_factory.mktemp("checkpoint"))


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


@pytest.mark.parametrize(("implementation", "chunk"), [("cpu", None), ("cpu", 13), ("cpu", 1), ("reference", 13)])
def test_logits_of_prompt_and_decode_steps(case: Case, implementation: str, chunk: int | None):
    driver = case.driver(implementation=implementation)
    sequence = driver.add(case.prompt, max_new_tokens=len(case.forced))
    logits = [driver.prefill(sequence, chunk=chunk)]
    for token in case.forced:
        sequence.token_ids.append(token)
        logits += driver.step([(sequence, 1)])
    assert error(torch.cat(logits), case.logits) <= LIMIT


@pytest.mark.parametrize("chunk", [None, 19], ids=["whole", "chunks"])
def test_greedy_tokens(case: Case, chunk: int | None):
    driver = case.driver()
    sequence = driver.add(case.prompt, max_new_tokens=NUM_GREEDY)
    assert driver.generate(sequence, NUM_GREEDY, chunk=chunk) == case.greedy


def test_mixed_batch_equals_each_alone(case: Case):
    """Decodes, a whole prompt and chunks share steps; the last prompt token of one comes as a decode row."""
    driver = case.driver()
    room = {"max_new_tokens": len(case.forced)}
    first, second, third = (driver.add(case.prompt, **room) for _ in range(3))
    got = [[], [], []]

    def step(*rows: tuple[int, int]) -> None:
        sequences = (first, second, third)
        for (index, _), logits in zip(rows, driver.step([(sequences[i], n) for i, n in rows]), strict=True):
            got[index].append(logits)

    step((0, 70), (1, 40))
    for token in case.forced[:10]:
        first.token_ids.append(token)
    step((0, 1), (1, 29), (2, 35))
    step((0, 1), (1, 1), (2, 35))
    for sequence in (second, third):
        sequence.token_ids += case.forced[:3]
    step((0, 1), (1, 1), (2, 1))
    step((0, 1), (2, 1))
    for logits in got:
        rows = torch.cat(logits)
        assert error(rows, case.logits[: len(rows)]) <= LIMIT


def test_shared_prefix_blocks(case: Case):
    """A sequence that starts from another's blocks, as prefix reuse does, continues as if it had run them itself."""
    driver = case.driver()
    first = driver.add(case.prompt, max_new_tokens=len(case.forced))
    driver.prefill(first)
    second = driver.add(case.prompt, max_new_tokens=len(case.forced))
    second.blocks, second.num_cached = first.blocks[:3], 48
    assert error(driver.prefill(second), case.logits[48:70]) <= LIMIT


def test_tokens_recomputed_after_a_preemption(case: Case):
    driver = case.driver()
    sequence = driver.add(case.prompt, max_new_tokens=len(case.forced))
    sequence.token_ids += case.forced[:20]
    driver.prefill(sequence)
    driver.free(sequence)
    sequence.token_ids += case.forced[20:]
    assert error(driver.prefill(sequence, chunk=50), case.logits) <= LIMIT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_is_as_close_as_transformers(plain_case: Case, dtype: torch.dtype):
    with torch.no_grad():
        reference = load_reference(plain_case.path, dtype=str(dtype).removeprefix("torch."))
        theirs = reference(torch.tensor([plain_case.prompt])).logits[0].float()
    want = plain_case.logits[:70]
    driver = plain_case.driver(dtype)
    ours = driver.prefill(driver.add(plain_case.prompt))
    assert ours.dtype is torch.float32
    assert ours.isfinite().all()

    def typical(logits: torch.Tensor) -> float:
        return float((logits - want).square().mean().sqrt() / want.square().mean().sqrt())

    assert typical(ours) <= 1.2 * typical(theirs) + 1e-3


class ThreadGroup:
    """Tensor-parallel ranks as threads of this process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, board: list):
        self.rank, self.size, self._barrier, self._board = rank, size, barrier, board

    def _exchange(self, x: torch.Tensor) -> list[torch.Tensor]:
        self._board[self.rank] = x
        self._barrier.wait(60)
        everyone = list(self._board)
        self._barrier.wait(60)
        return everyone

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._exchange(x)).sum(0)

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._exchange(x), dim=-1)


def rank_weights(case: Case, *, tp_rank: int, tp_size: int, layers: range) -> dict[str, torch.Tensor]:
    whole, shards = load_weights(case.path, case.config), {}
    for spec in get_architecture(case.config.architecture).weights(case.config):
        if not spec.is_on_stage(layers=layers, num_layers=case.config.num_layers):
            continue
        tensor = whole[spec.name]
        if spec.shard != "none":
            dim = 0 if spec.shard == "rows" else 1
            ranges = spec.rank_ranges(tp_rank=tp_rank, tp_size=tp_size)
            tensor = torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in ranges], dim)
        assert tensor.shape == spec.rank_shape(tp_size)
        shards[spec.name] = tensor
    return shards


def run_split(case: Case, *, tp_size: int, pp_size: int) -> torch.Tensor:
    """Logits of the prompt from a model split over tp_size threads and pp_size stages."""
    config = case.config
    barrier, board = threading.Barrier(tp_size), [None] * tp_size
    meta = AttentionMetadata.from_rows([0], [70], [list(range(5))], num_decodes=0, tokens_per_block=16)

    def run(rank: int) -> torch.Tensor:
        group = ThreadGroup(rank, tp_size, barrier, board)
        hidden = None
        for stage in range(pp_size):
            layers = stage_layers(config.num_layers, pp_rank=stage, pp_size=pp_size)
            weights = rank_weights(case, tp_rank=rank, tp_size=tp_size, layers=layers)
            decoder = Decoder(config, weights, layers=layers, tp_rank=rank, tp_size=tp_size, group=group)
            assert not weights, "a stage was given weights that it does not run"
            pool = KvPool(5, len(layers), max(1, config.num_kv_heads // tp_size), 16, config.head_dim, torch.float32)
            hidden = decoder.forward(torch.tensor(case.prompt), torch.arange(70), pool, meta, hidden=hidden)
        return decoder.logits(hidden)

    with ThreadPoolExecutor(tp_size) as threads:
        results = list(threads.map(run, range(tp_size)))
    assert all(result.equal(results[0]) for result in results)
    return results[0]


@pytest.mark.parametrize(("tp_size", "pp_size"), [(2, 1), (4, 1), (1, 3), (2, 2)])
def test_split_over_ranks_and_stages(plain_case: Case, tp_size: int, pp_size: int):
    assert error(run_split(plain_case, tp_size=tp_size, pp_size=pp_size), plain_case.logits[:70]) <= LIMIT


def test_biases_are_added_once_over_ranks(tmp_path: Path):
    case = make_case("llama-biases", tmp_path)
    assert error(run_split(case, tp_size=2, pp_size=1), case.logits[:70]) <= LIMIT
