"""Puts scheduler, cache and runner together from an engine directory."""

from __future__ import annotations

from pathlib import Path

from pelton.config import ExecutorConfig
from pelton.engine.loop import EngineLoop
from pelton.engine.messages import Ready
from pelton.runner.runner import Runner
from pelton.scheduler.scheduler import Scheduler


def make_loop(engine_dir: Path, config: ExecutorConfig) -> EngineLoop:
    """Loads the engine and makes its loop.

    Raises:
        EngineError: the directory is refused; ConfigError: the config asks for more than was built;
        CapacityError: it does not fit into memory.
    """
    return loop_over(Runner.from_engine(engine_dir, config), config)


def loop_over(runner: Runner, config: ExecutorConfig) -> EngineLoop:
    """A loop over a runner that is already loaded; the runner's limits are final."""
    scheduler = Scheduler(runner.limits, config)
    return EngineLoop(scheduler, runner, overlap=config.overlap, end_ids=runner.eos_ids)


def ready_message(loop: EngineLoop) -> Ready:
    """What a client must know of a loaded engine."""
    limits = loop.scheduler.limits
    return Ready(max_seq_len=limits.max_seq_len, max_input_len=limits.max_input_len,
                 max_batch_size=limits.max_batch_size, num_blocks=limits.num_blocks,
                 tokens_per_block=limits.tokens_per_block, vocab_size=limits.vocab_size, eos_ids=loop.end_ids)
