"""The CUDA C++ product: how it is cut, and that every cut compiles. What it computes is tested in tests/gpu."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from dataclasses import replace

import pytest

from pelton.kernels.linear import cluster, tuning
from pelton.kernels.linear.choices import Shape, default_choice
from pelton.kernels.linear.cluster import MAX_NORM_ROWS, ClusterConfig, Variant, fitting

SHAPES = [Shape(6144, 4096), Shape(4096, 4096), Shape(28672, 4096, is_gated=True), Shape(4096, 14336),
          Shape(128256, 4096), Shape(4608, 3584), Shape(37888, 3584, is_gated=True), Shape(3584, 18944),
          Shape(1000, 1544), Shape(656, 904, is_gated=True)]
BUCKETS = (32, 64, 128, 192, 256)
SHARED_BYTES = 227 << 10
"""The most that a block may have on compute capability 9.0."""


@pytest.fixture
def configs(monkeypatch) -> set[ClusterConfig]:
    """All that could be chosen for these shapes."""
    monkeypatch.setattr(tuning, "is_available", lambda: True)
    choices = [choice for shape, bucket in itertools.product(SHAPES, BUCKETS)
               for choice in (default_choice(shape, bucket, 90), *tuning.candidates(shape, bucket, 90))]
    return {choice.config for choice in choices if isinstance(choice.config, ClusterConfig)}


def test_cuts_fit_a_multiprocessor(configs):
    assert configs
    for config in configs:
        assert config.shared_bytes <= SHARED_BYTES, config
        assert config.num_stages >= (config.x_stages or 2) >= 2, config
        assert config.w_rows % 16 == 0, config
        assert config.w_rows <= 256, config


@pytest.mark.parametrize(("num_splits", "blocks_per_sm"), [(1, 1), (1, 2), (2, 1), (2, 2)])
def test_tiles_are_no_wider_than_need_be(num_splits, blocks_per_sm):
    for num_rows in (1000, 3584, 4608, 6144):
        config = fitting(num_rows, 64, num_splits=num_splits, blocks_per_sm=blocks_per_sm)
        num_slots = 132 * blocks_per_sm
        assert -(-num_rows // config.w_rows) * num_splits <= num_slots
        if config.w_rows > 16:
            assert -(-num_rows // (config.w_rows - 16)) * num_splits > num_slots


def test_too_wide_is_refused():
    assert fitting(128256, 128) is None
    assert fitting(40000, 256, blocks_per_sm=2) is None


def test_gated_weights_are_not_split(configs, monkeypatch):
    monkeypatch.setattr(tuning, "is_available", lambda: True)
    for bucket in BUCKETS:
        for choice in tuning.candidates(Shape(28672, 4096, is_gated=True), bucket, 90):
            assert getattr(choice.config, "num_splits", 1) in (0, 1)


def test_without_the_bindings_it_is_no_candidate(monkeypatch):
    monkeypatch.setattr(tuning, "is_available", lambda: False)
    kernels = {choice.kernel for choice in tuning.candidates(SHAPES[0], 64, 90)}
    assert "library" in kernels
    assert "cluster" not in kernels


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_built_in_cuts_compile_and_spill_nothing(tmp_path):
    """With nvcc, whose assembler refuses what registers cannot hold."""
    activations = itertools.cycle(("silu", "gelu_tanh", "gelu"))
    variants = {
        Variant(choice.config, next(activations) if shape.is_gated else None, has_bias=shape.n > 4096,
                has_residual=shape.n <= 4096, has_norm=shape.n > 4096 and choice.config.x_rows <= MAX_NORM_ROWS,
                out_float=False, is_half=bucket == 128)
        for shape, bucket in itertools.product(SHAPES[:4], BUCKETS)
        if (choice := default_choice(shape, bucket, 90)).kernel == "cluster"}
    variants.add(Variant(ClusterConfig(256, 128, 4), None, False, False, False, out_float=True, is_half=False))
    for index, variant in enumerate(variants):
        (tmp_path / f"{index}.cu").write_text(variant.source())
    done = subprocess.run(["nvcc", "-std=c++17", "-gencode=arch=compute_90a,code=sm_90a", "-cubin", "--threads", "2",
                           "-Xptxas", "-v", *(f"{index}.cu" for index in range(len(variants)))], text=True,
                          capture_output=True, cwd=tmp_path, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr.count("Used ") == len(variants)
    assert done.stderr.count(" 0 bytes spill stores") == len(variants)
    assert "wgmma.mma_async instructions are serialized" not in done.stderr


def test_source_depends_on_every_option():
    config = ClusterConfig(64, 96, 4)
    base = Variant(config, None, has_bias=False, has_residual=False, has_norm=False, out_float=False, is_half=False)
    flags = ("has_bias", "has_residual", "has_norm", "out_float", "is_half")
    others = [replace(base, act="silu"), *(replace(base, config=replace(config, **{name: 2}))
                                           for name in ("num_stages", "num_splits", "x_stages")),
              *(replace(base, **{name: True}) for name in flags)]
    assert len({variant.source() for variant in (base, *others)}) == 10


def test_missing_bindings_are_found_out(monkeypatch):
    cluster.is_available.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "cuda.bindings", None)
    assert not cluster.is_available()
    cluster.is_available.cache_clear()
