"""One step as the scheduler sees it: first while it is planned, then as long as it is in flight."""

from __future__ import annotations

from pelton.types import Batch, Sequence, SlotInit


class PlannedStep:
    """The rows of a step and what hangs on its completion."""

    __slots__ = ("block_ids", "held", "is_sampled", "masked", "new", "new_blocks", "num_decodes",
                 "num_tokens", "releases", "sampled", "seqs", "slots", "starts", "step_id")

    def __init__(self, step_id: int):
        self.step_id = step_id
        self.seqs: list[Sequence] = []  # one per row, as are the next five
        self.slots: list[int] = []
        self.starts: list[int] = []
        self.num_tokens: list[int] = []
        self.is_sampled: list[bool] = []
        self.block_ids: list[list[int]] = []  # the blocks it writes
        self.num_decodes = 0
        self.sampled: list[Sequence] = []  # of the sampled rows
        self.masked: list[Sequence] = []  # of the sampled rows whose mask is made on the host
        self.new: list[SlotInit] = []
        self.new_blocks: list[tuple[int, list[int]]] = []
        self.held: Sequence | None = None  # to be preempted as soon as its tokens are known, so it gets no row
        self.releases: list[list[int]] = []  # tables of sequences that left since; returned when the step completes

    def to_batch(self, freed: list[int]) -> Batch:
        return Batch(step_id=self.step_id, slots=self.slots, starts=self.starts,
                     num_tokens=self.num_tokens, is_sampled=self.is_sampled, num_decodes=self.num_decodes,
                     new=self.new, new_blocks=self.new_blocks, freed=freed)

    def add_row(self, seq: Sequence, num_tokens: int, *, is_sampled: bool, block_ids: list[int]) -> None:
        self.seqs.append(seq)
        self.slots.append(seq.slot)
        self.starts.append(seq.num_scheduled)
        self.num_tokens.append(num_tokens)
        self.is_sampled.append(is_sampled)
        self.block_ids.append(block_ids)
        seq.num_scheduled += num_tokens
        seq.last_step = self.step_id
        if is_sampled:
            seq.num_in_flight += 1
            self.sampled.append(seq)
            if seq.bad_words:
                self.masked.append(seq)
