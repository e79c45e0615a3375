# `make help` lists the targets; each installs what it needs first.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
VENV := $(or $(PELTON_VENV),.venv)
BIN := $(VENV)/bin

MODEL ?= pelton-tiny
PORT ?= 8000
URL ?= http://127.0.0.1:$(PORT)
SERVE_ARGS ?=
BENCH_ARGS ?= --concurrency 1,2,4,8 --prompt-tokens 16,64,256,900 --output-tokens 64 --num-requests 32
comma := ,
GPU_NAME = $(shell nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr 'A-Z ' 'a-z-')
PYTEST_ARGS ?= -n 2 --dist loadfile

.DEFAULT_GOAL := help
.PHONY: help setup setup-system demo test lint serve bench bench-gpu test-gpu clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## make the virtual environment (PELTON_VENV, default .venv); quick when nothing changed
	@bash scripts/setup.sh

setup-system: ## install chromium and prometheus for the tests that use them (Debian, Ubuntu)
	@bash scripts/setup-system.sh

demo: setup ## the whole path in three minutes: doctor, build, serve, one question, a sweep, out/demo/report.html
	@$(BIN)/python scripts/demo.py

test: setup lint ## ruff, import-linter and all tests; PYTEST_ARGS='tests/unit -k plan' for some
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: setup ## ruff and the rule that imports point down only
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-logo

serve: setup ## serve MODEL on PORT: make serve MODEL=Qwen/Qwen2.5-0.5B-Instruct SERVE_ARGS='--max-seq-len 4096'
	@$(BIN)/pelton serve $(MODEL) --port $(PORT) $(SERVE_ARGS)

bench: setup ## sweep the server at URL (make serve, in another terminal); the report goes to out/bench
	@$(BIN)/pelton bench sweep $(URL) --output-dir out/bench $(BENCH_ARGS)

bench-gpu: setup ## figures of one GPU against its limit (ONLY=decode,offline,prefill,ttft,streams,start), to results/nvidia-h200 on an H200
	@$(BIN)/python benchmarks/gpu_serve.py $(if $(ONLY),--only $(ONLY)) $(BENCH_GPU_ARGS) \
	  --output results/$(GPU_NAME)/$$(date +%F)-gpu$(if $(ONLY),-$(subst $(comma),-,$(ONLY))).json

test-gpu: setup ## the tests that need one or several GPUs
	@$(BIN)/python -m pytest tests/gpu tests/multigpu -m 'gpu or multigpu' $(PYTEST_ARGS)

clean: ## remove out/ and the caches of tools; the virtual environment stays
	rm -rf out build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find src tests scripts benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
