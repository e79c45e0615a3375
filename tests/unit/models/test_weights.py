"""Declared weights: names, fusion, and how they split over ranks and stages."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pelton.config import ModelConfig
from pelton.errors import ConfigError
from pelton.kernels.linear.cpu import PackedWeight
from pelton.models.decoder import Decoder, resident_bytes
from pelton.models.registry import get_architecture
from pelton.models.weights import decoder_weights, stage_layers

CONFIG = ModelConfig(architecture="LlamaForCausalLM", vocab_size=320, hidden_size=64, intermediate_size=96,
                     num_layers=4, num_heads=8, num_kv_heads=2, head_dim=16, max_position_embeddings=512,
                     attention_bias=True, output_bias=True, mlp_bias=True)


def specs(**changes):
    return {spec.name: spec for spec in decoder_weights(dataclasses.replace(CONFIG, **changes))}


def test_names_are_unique_and_ordered_by_layer():
    names = list(specs())
    assert len(set(names)) == len(names) == len(decoder_weights(CONFIG))
    assert names[0] == "embed.weight"
    assert names[-2:] == ["norm.weight", "head.weight"]
    assert [n.split(".")[1] for n in names if n.startswith("layers")] == sorted(
        n.split(".")[1] for n in names if n.startswith("layers"))


def test_fusion_and_shapes():
    qkv = specs()["layers.1.qkv.weight"]
    assert qkv.sources == tuple(f"model.layers.1.self_attn.{m}_proj.weight" for m in "qkv")
    assert (qkv.shape, qkv.parts, qkv.layer) == ((192, 64), (128, 32, 32), 1)
    gate_up = specs()["layers.0.gate_up.bias"]
    assert (gate_up.shape, gate_up.parts) == ((192,), (96, 96))
    for spec in specs().values():
        assert sum(spec.parts) == spec.shape[0]


def test_phi3_sources_come_fused():
    weights = {w.name: w for w in get_architecture("Phi3ForCausalLM").weights(CONFIG)}
    assert weights["layers.0.qkv.weight"].sources == ("model.layers.0.self_attn.qkv_proj.weight",)
    assert weights["layers.0.qkv.weight"].parts == (128, 32, 32)
    assert weights["layers.0.gate_up.weight"].sources == ("model.layers.0.mlp.gate_up_proj.weight",)


def test_gemma_norms_stand_on_both_sides():
    weights = specs(sandwich_norm=True)
    assert weights["layers.0.attn_post_norm.weight"].sources == ("model.layers.0.post_attention_layernorm.weight",)
    assert weights["layers.0.mlp_norm.weight"].sources == ("model.layers.0.pre_feedforward_layernorm.weight",)
    assert specs()["layers.0.mlp_norm.weight"].sources == ("model.layers.0.post_attention_layernorm.weight",)


def test_tied_head_is_the_embedding_on_both_ends():
    tied = specs(tie_word_embeddings=True)
    assert "head.weight" not in tied
    assert tied["embed.weight"].stage == "ends"
    llama = get_architecture("LlamaForCausalLM")
    assert not llama.is_ignored("lm_head.weight", CONFIG)
    assert llama.is_ignored("lm_head.weight", dataclasses.replace(CONFIG, tie_word_embeddings=True))
    assert llama.is_ignored("model.layers.3.self_attn.rotary_emb.inv_freq", CONFIG)
    assert not llama.is_ignored("model.layers.3.self_attn.q_proj.weight_scale", CONFIG)


@pytest.mark.parametrize("tp_size", [1, 2, 4, 8])
def test_ranks_cover_every_row_once(tp_size):
    for spec in specs().values():
        if spec.shard == "none":
            assert spec.rank_shape(tp_size) == spec.shape
            continue
        rows = [row for rank in range(tp_size) for start, stop in spec.rank_ranges(tp_rank=rank, tp_size=tp_size)
                for row in range(start, stop)]
        size = spec.shape[0] if spec.shard == "rows" else spec.shape[1]
        assert set(rows) == set(range(size))
        is_repeated = tp_size > CONFIG.num_kv_heads and ".qkv." in spec.name
        assert (len(rows) > size) == is_repeated
        assert len(rows) == tp_size * spec.rank_shape(tp_size)[0 if spec.shard == "rows" else 1]


def test_qkv_split_keeps_heads_together():
    qkv = specs()["layers.0.qkv.weight"]
    assert qkv.rank_ranges(tp_rank=1, tp_size=2) == [(64, 128), (144, 160), (176, 192)]
    assert qkv.rank_ranges(tp_rank=0, tp_size=4)[1:] == qkv.rank_ranges(tp_rank=1, tp_size=4)[1:]
    assert qkv.rank_shape(4) == (32 + 16 + 16, 64)
    assert specs()["layers.0.gate_up.weight"].rank_ranges(tp_rank=1, tp_size=2) == [(48, 96), (144, 192)]
    assert specs()["layers.0.o.weight"].rank_ranges(tp_rank=1, tp_size=4) == [(32, 64)]


@pytest.mark.parametrize(("name", "tp_size"), [("layers.0.qkv.weight", 3), ("layers.0.qkv.weight", 16),
                                               ("layers.0.o.weight", 16), ("embed.weight", 3),
                                               ("layers.0.gate_up.weight", 5)])
def test_uneven_splits_are_refused(name, tp_size):
    with pytest.raises(ConfigError, match=f"tp_size must divide .* of {name}, got {tp_size}"):
        specs()[name].rank_ranges(tp_rank=0, tp_size=tp_size)


def test_stages():
    assert [stage_layers(7, pp_rank=r, pp_size=3) for r in range(3)] == [range(3), range(3, 5), range(5, 7)]
    with pytest.raises(ConfigError, match="pp_size"):
        stage_layers(2, pp_rank=0, pp_size=3)


def test_stages_hold_what_they_run():
    weights = specs(tie_word_embeddings=True).values()
    stages = [stage_layers(4, pp_rank=r, pp_size=3) for r in range(3)]
    held = [{w.name for w in weights if w.is_on_stage(layers=layers, num_layers=4)} for layers in stages]
    assert [("embed.weight" in names, "norm.weight" in names) for names in held] == [
        (True, False), (False, False), (True, True)]
    assert set.union(*held) == {w.name for w in weights}
    assert not {n for n in held[0] & held[2] if n != "embed.weight"}
    untied = specs().values()
    assert [w.name for w in untied if w.stage == "first"] == ["embed.weight"]


@pytest.mark.parametrize("is_tied", [False, True])
def test_resident_bytes_are_what_a_decoder_holds(is_tied):
    config = dataclasses.replace(CONFIG, tie_word_embeddings=is_tied)
    weights = {spec.name: torch.zeros(spec.shape, dtype=torch.float16) for spec in decoder_weights(config)}
    decoder = Decoder(config, dict(weights))
    matrices = [decoder.head._linear] + [
        linear for layer in decoder.layers
        for linear in (layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down)]
    held = sum(m.weight.num_bytes if isinstance(m.weight, PackedWeight) else m.weight.nbytes for m in matrices)
    held += sum(w.nbytes for name, w in weights.items() if w.dim() == 1 or name == "embed.weight")
    assert resident_bytes(config, torch.float16, implementation="cpu") == held
    plain = sum(w.nbytes for w in weights.values())
    assert resident_bytes(config, torch.float16, implementation="reference") == plain
