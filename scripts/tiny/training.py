"""The training loop: token windows in, the best checkpoint by validation loss out, within a wall-clock budget."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tiny import tokens
from tiny.export import save_shards, write_text
from tiny.model import TinyConfig, TinyLlama

REPORT_SECONDS = 10.0
PACE_STEPS = 20
FINISH_SECONDS = 4.0


@dataclass(frozen=True)
class Settings:
    """What one run is made with."""

    dropout: float
    weight_decay: float
    peak_lr: float = 2e-3
    final_lr_ratio: float = 0.02
    warmup_steps: int = 150
    batch_rows: int = 64
    window_tokens: int = 2048
    framed_share: float = 0.2
    num_evals: int = 30
    seed: int = 1
    compile: bool = True


@dataclass
class RunRecord:
    """What one run did. Losses are nats per token."""

    settings: dict[str, Any]
    num_steps: int = 0
    num_tokens: int = 0
    num_epochs: float = 0.0
    best_step: int = 0
    best_valid_loss: float = math.inf
    final_train_loss: float | None = None
    tokens_per_s: float = 0.0
    wall_s: float = 0.0
    is_compiled: bool = False
    history: list[dict[str, float | None]] = field(default_factory=list)


@dataclass(frozen=True)
class TokenData:
    """Token arrays on the device. `stream` holds whole files, `framed` cut snippets and chats."""

    stream: Tensor  # int32 [num_tokens]
    framed: Tensor  # int32 [num_framed_tokens]
    framed_starts: Tensor  # int64 [num_samples]
    valid: Tensor  # int32 [num_valid_tokens]
    heldout: Tensor  # int32 [num_heldout_tokens]
    valid_bytes: int
    heldout_bytes: int

    @classmethod
    def load(cls, folder: Path, device: torch.device) -> TokenData:
        """Read what the `tokenizer` command wrote into `folder`."""
        with np.load(folder / "train.npz") as train, np.load(folder / "eval.npz") as held:

            def tensor(array: np.ndarray) -> Tensor:
                return torch.from_numpy(array.astype(np.int32)).to(device)

            return cls(
                stream=tensor(train["stream"]),
                framed=tensor(train["framed"]),
                framed_starts=torch.from_numpy(train["framed_starts"].astype(np.int64)).to(device),
                valid=tensor(held["valid"]),
                heldout=tensor(held["heldout"]),
                valid_bytes=int(held["valid_bytes"]),
                heldout_bytes=int(held["heldout_bytes"]),
            )


class WindowSampler:
    """Training rows on the device: each epoch cuts the files at another offset, in another order."""

    def __init__(self, data: TokenData, settings: Settings) -> None:
        self.data, self.length = data, settings.window_tokens
        self.num_framed = round(settings.batch_rows * settings.framed_share)
        self.num_stream = settings.batch_rows - self.num_framed
        self.generator = torch.Generator(device=data.stream.device).manual_seed(settings.seed)
        self.queue = self._new_epoch()
        # A framed window must not run past the end of its array.
        self.framed_starts = data.framed_starts[data.framed_starts < data.framed.numel() - self.length - 1]

    def next(self) -> tuple[Tensor, Tensor]:
        """(inputs, targets), each int64 [batch_rows, window_tokens]; every input row begins with `<|endoftext|>`."""
        while self.queue.numel() < self.num_stream:
            self.queue = torch.cat((self.queue, self._new_epoch()))
        starts, self.queue = self.queue[: self.num_stream], self.queue[self.num_stream :]
        picks = torch.randint(
            self.framed_starts.numel(), (self.num_framed,), generator=self.generator, device=starts.device
        )
        span = torch.arange(self.length, device=starts.device)
        rows = self.data.stream[starts[:, None] + span]
        # A framed sample has its own first `<|endoftext|>`, which the row supplies.
        framed = self.data.framed[self.framed_starts[picks][:, None] + 1 + span]
        return shift(torch.cat((rows, framed)).long())

    def _new_epoch(self) -> Tensor:
        num_tokens, device = self.data.stream.numel(), self.data.stream.device
        offset = int(torch.randint(self.length, (1,), generator=self.generator, device=device))
        num_rows = (num_tokens - offset) // self.length
        return offset + self.length * torch.randperm(num_rows, generator=self.generator, device=device)


def shift(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs for predicting `targets` [B, T] one token ahead, beginning with `<|endoftext|>`."""
    inputs = targets.roll(1, dims=1)
    inputs[:, 0] = tokens.BOS_ID
    return inputs, targets


@torch.no_grad()
def evaluate(model: TinyLlama, stream: Tensor, *, window_tokens: int, rows: int = 16) -> float:
    """Total nats of `stream` in windows that do not overlap, each begun by `<|endoftext|>`; every token counts once."""
    was_training = model.training
    model.eval()
    num_whole = stream.numel() // window_tokens
    batches = list(stream[: num_whole * window_tokens].view(num_whole, window_tokens).split(rows)) if num_whole else []
    if stream.numel() % window_tokens:
        batches.append(stream[num_whole * window_tokens :][None])
    total = 0.0
    for batch in batches:
        inputs, targets = shift(batch.long())
        total += model.loss(inputs, targets).item() * targets.numel()
    model.train(was_training)
    return total


def measures(nats: float, num_tokens: int, num_bytes: int) -> dict[str, float | int]:
    """Loss per token, perplexity per token and bits per byte of a text."""
    loss = nats / num_tokens
    return {
        "loss_nats_per_token": round(loss, 5),
        "perplexity_per_token": round(math.exp(loss), 4),
        "bits_per_byte": round(nats / math.log(2) / num_bytes, 5),
        "num_tokens": num_tokens,
        "num_bytes": num_bytes,
    }


def train_run(
    data: TokenData,
    config: TinyConfig,
    settings: Settings,
    *,
    seconds: float,
    max_steps: int | None,
    on_best: Callable[[TinyLlama, int, float], None],
    log: Callable[[dict[str, Any]], None],
) -> RunRecord:
    """One run of at most `seconds` (or exactly `max_steps`), calling `on_best` at each new lowest validation loss."""
    begin = time.monotonic()
    device = data.stream.device
    torch.manual_seed(settings.seed)
    model = TinyLlama(config, settings.dropout).to(device)
    optimizer = _optimizer(model, settings)
    sampler = WindowSampler(data, settings)
    record = RunRecord(settings=asdict(settings))
    loss_of, record.is_compiled = _compiled_loss(model, sampler, settings)
    schedule = _Schedule(begin + seconds - FINISH_SECONDS, max_steps, settings)
    next_report = time.monotonic()
    step, is_over = 0, False
    running: list[Tensor] = []
    while not is_over:
        for group in optimizer.param_groups:
            group["lr"] = schedule.lr(step)
        with autocast(device):
            loss = loss_of(*sampler.next())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running.append(loss.detach())
        step += 1
        if step % PACE_STEPS == 0 or step == max_steps:
            record.final_train_loss = torch.stack(running[-PACE_STEPS:]).mean().item()  # waits for the device
            running.clear()
            schedule.observe(step)
        is_over = schedule.is_over(step)
        if schedule.wants_eval(step) or is_over:
            with autocast(device):
                nats = evaluate(model, data.valid, window_tokens=settings.window_tokens)
            valid_loss = nats / data.valid.numel()
            if valid_loss < record.best_valid_loss:
                record.best_valid_loss, record.best_step = valid_loss, step
                on_best(model, step, valid_loss)
            record.history.append({"step": step, "train": record.final_train_loss, "valid": valid_loss})
        if time.monotonic() >= next_report or is_over:
            next_report = time.monotonic() + REPORT_SECONDS
            log(_progress(record, settings, schedule, step, begin, data))
    return record


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """bf16 where a GPU has it; float32 on a CPU, where bf16 may be emulated."""
    return torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else nullcontext()


class BestKeeper:
    """Writes the best model of all runs, with metrics, under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best_loss = math.inf
        self.run_index = -1
        folder.mkdir(parents=True, exist_ok=True)

    def offer(self, model: TinyLlama, step: int, valid_loss: float, *, run_index: int) -> None:
        """Save `model` when it beats everything before it."""
        if valid_loss < self.best_loss:
            self.best_loss, self.run_index = valid_loss, run_index
            save_shards(model.state_dict(), self.folder, step=step)

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        write_text(self.folder / "metrics.json", json.dumps(metrics, indent=1) + "\n")


class _Schedule:
    """Linear warm-up, then cosine; its length follows from the measured pace so that it ends when time does."""

    def __init__(self, deadline: float, max_steps: int | None, settings: Settings) -> None:
        self.deadline, self.max_steps, self.settings = deadline, max_steps, settings
        self.num_steps = max_steps or 10**9
        self.last_eval = 0
        self.pace_from: tuple[int, float] | None = None

    def observe(self, step: int) -> None:
        now = time.monotonic()
        if self.max_steps is None and self.pace_from is not None:
            step_seconds = (now - self.pace_from[1]) / (step - self.pace_from[0])
            self.num_steps = step + max(0, int((self.deadline - now) / step_seconds))
        # The first steps allocate and tune; pace counts from after them.
        self.pace_from = self.pace_from or (step, now)

    def lr(self, step: int) -> float:
        warmup = min(self.settings.warmup_steps, self.num_steps // 10 + 1)
        peak, floor = self.settings.peak_lr, self.settings.peak_lr * self.settings.final_lr_ratio
        if step < warmup:
            return peak * (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, self.num_steps - warmup))
        return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    def wants_eval(self, step: int) -> bool:
        if self.num_steps == 10**9 or step - self.last_eval < max(1, self.num_steps // self.settings.num_evals):
            return False
        self.last_eval = step
        return True

    def is_over(self, step: int) -> bool:
        return step >= self.num_steps or (self.max_steps is None and time.monotonic() >= self.deadline)


def _optimizer(model: TinyLlama, settings: Settings) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), fused=matrices[0].is_cuda)


def _compiled_loss(
    model: TinyLlama, sampler: WindowSampler, settings: Settings
) -> tuple[Callable[[Tensor, Tensor], Tensor], bool]:
    """`model.loss`, compiled when that works here: forward and backward are tried once before it is relied on."""
    model.train()
    inputs, targets = sampler.next()
    if settings.compile and inputs.is_cuda:
        try:
            compiled = torch.compile(model.loss)
            with autocast(inputs.device):
                loss = compiled(inputs, targets)
            loss.backward()
            model.zero_grad(set_to_none=True)
            return compiled, True
        except Exception as error:  # whatever the compiler stumbled on, eager training is the mend
            print(f"torch.compile failed, training eagerly: {type(error).__name__}: {str(error)[:300]}", flush=True)
            model.zero_grad(set_to_none=True)
    return model.loss, False


def _progress(
    record: RunRecord, settings: Settings, schedule: _Schedule, step: int, begin: float, data: TokenData
) -> dict[str, Any]:
    record.num_steps = step
    record.num_tokens = step * settings.batch_rows * settings.window_tokens
    stream_tokens = record.num_tokens * (1 - settings.framed_share)
    record.num_epochs = round(stream_tokens / data.stream.numel(), 2)
    record.wall_s = round(time.monotonic() - begin, 1)
    record.tokens_per_s = round(record.num_tokens / max(record.wall_s, 1e-9))
    return {
        "step": step,
        "of": schedule.num_steps if schedule.num_steps < 10**9 else None,
        "wall_s": record.wall_s,
        "epochs": record.num_epochs,
        "tokens_per_s": record.tokens_per_s,
        "lr": round(schedule.lr(step), 7),
        "train": record.final_train_loss,
        "valid": record.history[-1]["valid"] if record.history else None,
        "best": record.best_valid_loss if record.history else None,
    }


def append_line(path: Path, line: dict[str, Any]) -> None:
    """Add one JSON line to a log and show it."""
    text = json.dumps(line)
    print(text, flush=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text + os.linesep)
