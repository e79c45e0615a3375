"""The runner over a decoder that answers with its whole prefix: slots, chunks, overlap, errors, log-probabilities."""

import threading

import pytest
import torch
from helpers.prefix_decoder import CONFIG, VOCAB_SIZE, PrefixDecoder, hidden_of, logits_of

from pelton.cache.pool import KvPool
from pelton.kernels.sampling import reference
from pelton.kernels.sampling.reference import SamplingRow
from pelton.manifest import EngineLimits
from pelton.runner.device import CpuQueue
from pelton.runner.runner import Runner
from pelton.types import Batch, SamplingParams, SlotInit

LIMITS = EngineLimits(max_batch_size=8, max_seq_len=64, max_input_len=63, max_num_tokens=256, tokens_per_block=16,
                      num_blocks=40, vocab_size=VOCAB_SIZE)
GREEDY = SamplingParams(temperature=0.0)


class Plan:
    """One sequence for `drive`: a prompt, how its prompt is cut, when it starts."""

    def __init__(self, slot, prompt, params=GREEDY, *, seed=0, chunks=(), begin=0, num_outputs=8, end_ids=(), known=()):
        self.slot, self.prompt, self.params, self.seed = slot, list(prompt), params, seed
        self.known = list(known)  # output tokens from before a preemption
        total = len(self.prompt) + len(self.known)
        self.chunks = [*chunks, total - sum(chunks)]
        self.begin, self.num_outputs, self.end_ids = begin, num_outputs, end_ids
        self.blocks = [slot * 4 + i for i in range(4)]
        self.outputs, self.logprobs, self.prompt_logprobs = [], [], []
        self.start = self.num_launched = 0

    def expected(self, masks=None):
        """The reference's continuation."""
        outputs = list(self.known)
        for _ in range(self.num_outputs):
            row = SamplingRow(params=self.params, prompt_ids=tuple(self.prompt), output_ids=tuple(outputs),
                              seed=self.seed, end_ids=self.end_ids, banned_ids=(masks or {}).get(self.slot, ()))
            hidden = torch.tensor([[hidden_of(self.prompt + outputs)]])
            outputs.append(reference.sample(logits_of(hidden)[0], row))
        return outputs[len(self.known):]


@pytest.fixture
def decoder():
    return PrefixDecoder()


@pytest.fixture
def runner(decoder):
    runner = make_runner(decoder)
    yield runner
    runner.close()


def make_runner(decoder):
    pool = KvPool(40, 1, 1, 16, 2, torch.float32)
    return Runner(decoder, pool, LIMITS, CONFIG, device=torch.device("cpu"), queue=CpuQueue(num_threads=1))


def make_batch(step_id, rows, *, new=(), new_blocks=(), freed=()):
    """rows: (slot, start, num_tokens, is_sampled, is_decode), decodes first."""
    rows = sorted(rows, key=lambda row: not row[4])
    slots, starts, nums, sampled, decodes = (list(column) for column in zip(*rows))
    return Batch(step_id=step_id, slots=slots, starts=starts, num_tokens=nums, is_sampled=sampled,
                 num_decodes=sum(decodes), new=list(new), new_blocks=list(new_blocks), freed=list(freed))


def plan_step(step_id, plans):
    """One batch over all plans that have something left to run: chunks of prompts beside decodes."""
    rows, new = [], []
    for plan in plans:
        if plan.begin > step_id or plan.num_launched == plan.num_outputs:
            continue
        if plan.start == 0:
            new.append(SlotInit(plan.slot, plan.prompt + plan.known, len(plan.prompt), plan.blocks, plan.params,
                                plan.seed, plan.end_ids))
        is_decode = not plan.chunks
        num = 1 if is_decode else plan.chunks.pop(0)
        is_sampled = not plan.chunks
        rows.append((plan.slot, plan.start, num, is_sampled, is_decode))
        plan.start += num
        plan.num_launched += is_sampled
    return make_batch(step_id, rows, new=new) if rows else None


def take(output, plans):
    by_slot = {plan.slot: plan for plan in plans}
    for j, (slot, token) in enumerate(zip(output.slots, output.token_ids, strict=True)):
        by_slot[slot].outputs.append(token)
        by_slot[slot].logprobs.append(output.logprobs[j] if output.logprobs else None)
    for slot, entries in (output.prompt_logprobs or {}).items():
        by_slot[slot].prompt_logprobs += entries


def drive(runner, plans, *, overlap=True, masks=None, first_step=0):
    """Runs plans to their ends; with overlap a step is launched before the last one's tokens are looked at."""
    in_flight, step_id = [], first_step
    while (batch := plan_step(step_id, plans)) is not None:
        step = runner.forward(batch)
        runner.sample(step, masks)
        in_flight.append(step)
        while len(in_flight) > int(overlap):
            take(in_flight.pop(0).result(), plans)
        step_id += 1
    for step in in_flight:
        take(step.result(), plans)


def free(runner, slots, step_id=1000):
    """Frees slots in a step that runs one token of a prompt in the last slot."""
    new = [SlotInit(7, [2, 2], 2, [39], GREEDY, 0, ())]
    step = runner.forward(make_batch(step_id, [(7, 0, 1, False, False)], new=new, freed=slots))
    runner.sample(step, None)
    assert step.result().token_ids == []


MIXED = [
    lambda: Plan(0, range(2, 12)),
    lambda: Plan(1, range(5, 40), SamplingParams(temperature=0.8, top_p=0.9), seed=77, chunks=(10, 7, 16), begin=1),
    lambda: Plan(2, [3], SamplingParams(top_k=5, repetition_penalty=1.3), seed=-5, begin=2),
    lambda: Plan(3, [9, 9, 8] * 6, SamplingParams(presence_penalty=1.5, frequency_penalty=0.5), seed=2**62,
                 chunks=(1,)),
    lambda: Plan(4, [1, 2, 3, 4], SamplingParams(min_tokens=6), end_ids=(10, 11, 12), begin=4),
    lambda: Plan(5, [60, 0], SamplingParams(temperature=0.0, logit_bias={4: 3.0, 7: -5.0}), begin=5, num_outputs=1),
]


@pytest.mark.parametrize("overlap", [True, False])
def test_mixed_batch_matches_reference(runner, overlap):
    plans = [make() for make in MIXED]
    drive(runner, plans, overlap=overlap)
    assert [plan.outputs for plan in plans] == [make().expected() for make in MIXED]


@pytest.mark.parametrize("which", range(len(MIXED)))
def test_alone_draws_the_same_tokens(runner, which):
    plan = MIXED[which]()
    plan.begin = 0
    drive(runner, [plan])
    assert plan.outputs == MIXED[which]().expected()


def test_decode_rows_read_the_devices_own_last_token(runner):
    """Three steps are queued before any token is looked at."""
    plan = Plan(0, [4, 5, 6], SamplingParams(), seed=3, num_outputs=3)
    expected = plan.expected()
    steps = []
    while (batch := plan_step(len(steps), [plan])) is not None:
        steps.append(runner.forward(batch))
        runner.sample(steps[-1], None)
    assert [step.result().token_ids for step in steps] == [[token] for token in expected]


def test_forward_and_sample_return_at_once(decoder, runner):
    """Both are queued while the device is busy; the next forward pass is too."""
    release = threading.Event()
    original = decoder.forward
    decoder.forward = lambda *args: release.wait(60) and original(*args)
    plan = Plan(0, [4, 5, 6], num_outputs=2)
    expected = plan.expected()
    first = runner.forward(plan_step(0, [plan]))
    runner.sample(first, None)
    second = runner.forward(plan_step(1, [plan]))
    runner.sample(second, None)
    release.set()
    assert [first.result().token_ids, second.result().token_ids] == [[expected[0]], [expected[1]]]


def test_preempted_sequence_continues_as_if_nothing_happened(runner):
    """Known output tokens come back with the slot; penalties and random positions go on where they were."""
    params = SamplingParams(temperature=1.1, frequency_penalty=1.0, repetition_penalty=1.2, min_tokens=5)
    whole = Plan(0, [4, 5, 6], params, seed=9, end_ids=(20, 21), num_outputs=9)
    drive(runner, [whole])
    resumed = Plan(3, [4, 5, 6], params, seed=9, end_ids=(20, 21), num_outputs=5, known=whole.outputs[:4],
                   chunks=(2, 3))
    drive(runner, [resumed])
    assert resumed.outputs == whole.outputs[4:] == resumed.expected()


def test_penalties_see_the_tokens_just_drawn(runner):
    """Two favoured tokens take turns as each drawing makes the drawn one less likely."""
    params = SamplingParams(temperature=0.0, logit_bias={5: 60.0, 9: 59.0}, frequency_penalty=2.0)
    plan = Plan(0, [4], params)
    drive(runner, [plan])
    assert set(plan.outputs) == {5, 9}
    assert plan.outputs == plan.expected()


def test_freed_slot_forgets_its_sequence(runner):
    """Bias, counts, bans and log-probabilities of the old sequence do not reach the new one."""
    params = SamplingParams(logit_bias={5: 100.0}, repetition_penalty=2.0, min_tokens=50, logprobs=2, prompt_logprobs=1,
                            max_tokens=60)
    drive(runner, [Plan(0, range(30), params, end_ids=tuple(range(30)))])
    free(runner, [0])
    plan = Plan(0, [7, 8], SamplingParams(frequency_penalty=0.1), seed=4)
    drive(runner, [plan])
    assert plan.outputs == plan.expected()
    assert plan.logprobs == [None] * 8
    assert plan.prompt_logprobs == []


def test_freed_and_given_away_in_one_batch(runner):
    drive(runner, [Plan(2, [3, 4, 5])])
    new = SlotInit(2, [8, 9], 2, [30], GREEDY, 0, ())
    step = runner.forward(make_batch(50, [(2, 0, 2, True, False)], new=[new], freed=[2]))
    runner.sample(step, None)
    assert step.result().token_ids == Plan(2, [8, 9], num_outputs=1).expected()


def test_blocks_are_appended_as_they_are_needed(runner):
    plan = Plan(1, range(14), num_outputs=8)
    expected = plan.expected()
    plan.blocks = [17]
    outputs = []
    for step_id in range(8):
        batch = plan_step(step_id, [plan])
        if batch.starts == [16]:
            batch.new_blocks = [(1, [3])]
        step = runner.forward(batch)
        runner.sample(step, None)
        outputs += step.result().token_ids
    assert outputs == expected


def test_masks_ban_tokens_for_one_step(runner):
    free_plan = Plan(0, [4, 5, 6])
    unmasked = free_plan.expected()
    banned = {0: [unmasked[0], unmasked[3]]}
    plans = [Plan(0, [4, 5, 6]), Plan(1, [4, 5, 6])]
    drive(runner, plans, masks=banned)
    assert plans[0].outputs == Plan(0, [4, 5, 6]).expected(banned)
    assert not set(plans[0].outputs) & set(banned[0])
    assert plans[1].outputs == unmasked


def test_ids_outside_the_vocabulary_are_dropped_from_bias_and_bans(runner):
    plan = Plan(0, [4], SamplingParams(temperature=0.0, logit_bias={VOCAB_SIZE + 5: 9.0}, min_tokens=3),
                end_ids=(VOCAB_SIZE + 1,))
    drive(runner, [plan], masks={0: [VOCAB_SIZE]})
    assert plan.outputs == Plan(0, [4]).expected()


def test_logprobs_are_those_of_the_raw_logits(runner):
    params = SamplingParams(temperature=0.7, logprobs=3, repetition_penalty=1.7, logit_bias={3: 5.0})
    plans = [Plan(0, [4, 5, 6], params, seed=1), Plan(1, [9]), Plan(2, [8], SamplingParams(logprobs=0))]
    drive(runner, plans)
    for plan, num_top in ((plans[0], 3), (plans[2], 0)):
        for i, entry in enumerate(plan.logprobs):
            logits = logits_of(torch.tensor([[hidden_of(plan.prompt + plan.outputs[:i])]]))[0]
            exact = torch.log_softmax(logits, dim=-1)
            assert entry.token_ids == [plan.outputs[i], *exact.topk(num_top).indices.tolist()]
            assert entry.logprobs == pytest.approx(exact[entry.token_ids].tolist(), abs=1e-5)
            assert entry.rank == 1 + int((exact > exact[plan.outputs[i]]).sum())
    assert plans[1].logprobs == [None] * 8


@pytest.mark.parametrize("chunks", [(), (1, 1, 20), (16, 16)])
def test_prompt_logprobs_cross_chunk_borders(runner, decoder, chunks):
    prompt = [(7 * i) % 50 for i in range(40)]
    plans = [Plan(0, prompt, SamplingParams(prompt_logprobs=2, temperature=0.0), chunks=chunks), Plan(1, [3, 4, 5])]
    drive(runner, plans)
    entries = plans[0].prompt_logprobs
    assert len(entries) == 39
    for i, entry in enumerate(entries):
        logits = logits_of(torch.tensor([[hidden_of(prompt[:i + 1])]]))[0]
        assert entry.token_ids[0] == prompt[i + 1]
        expected = reference.logprobs(logits, prompt[i + 1], 2)
        assert entry.token_ids == expected.token_ids
        assert entry.rank == expected.rank
        assert entry.logprobs == pytest.approx(expected.logprobs, abs=1e-5)
    assert plans[0].outputs == plans[0].expected()


def test_prompt_logprobs_stop_at_the_prompts_end_after_a_preemption(runner):
    plan = Plan(0, [5, 6, 7], SamplingParams(prompt_logprobs=0, temperature=0.0), known=[9, 9, 9], num_outputs=1)
    drive(runner, [plan])
    assert [entry.token_ids for entry in plan.prompt_logprobs] == [[6], [7]]


def test_prompt_is_scored_in_passes_of_bounded_size(runner, decoder, monkeypatch):
    monkeypatch.setattr("pelton.runner.sampler._SCORED_LOGITS", VOCAB_SIZE * 4)
    plan = Plan(0, range(11), SamplingParams(prompt_logprobs=1, temperature=0.0), num_outputs=1)
    drive(runner, [plan])
    assert len(plan.prompt_logprobs) == 10
    assert decoder.logits_rows == [1, 4, 4, 2]


def test_only_sampled_rows_go_through_the_head(runner, decoder):
    plans = [Plan(0, range(20), chunks=(5, 5), num_outputs=1), Plan(1, range(3), num_outputs=3)]
    drive(runner, plans)
    assert decoder.logits_rows == [1, 1, 2]  # the chunk that ends the first prompt joins the third step


def test_failed_step_raises_and_spares_the_next(runner, decoder):
    original = decoder.forward
    decoder.forward = lambda *args: 1 // 0
    plan = Plan(0, [4, 5])
    step = runner.forward(plan_step(0, [plan]))
    runner.sample(step, None)
    with pytest.raises(ZeroDivisionError):
        step.result()
    decoder.forward = original
    other = Plan(1, [6, 7])
    drive(runner, [other])
    assert other.outputs == Plan(1, [6, 7]).expected()
    with pytest.raises(ZeroDivisionError):  # asked again, it says so again
        step.result()


def test_failed_sampling_raises_and_spares_the_next(runner, decoder):
    original = decoder.logits
    decoder.logits = lambda hidden: original(hidden)[:, :0]
    plan = Plan(0, [4, 5])
    step = runner.forward(plan_step(0, [plan]))
    runner.sample(step, None)
    with pytest.raises(Exception, match="argmax"):
        step.result()
    decoder.logits = original
    other = Plan(1, [6, 7])
    drive(runner, [other])
    assert other.outputs == Plan(1, [6, 7]).expected()


@pytest.mark.parametrize(("rows", "new", "message"), [
    ([(3, 0, 1, True, True)], [], "holds no sequence"),
    ([(0, 0, 5, True, False)], [SlotInit(0, [2, 3], 2, [1], GREEDY, 0, ())], "not handed over"),
    ([(0, 0, 20, True, False)], [SlotInit(0, [2] * 20, 20, [1], GREEDY, 0, ())], "past its blocks"),
    ([(0, 0, 2, True, True)], [SlotInit(0, [2, 3], 2, [1], GREEDY, 0, ())], "a decode row runs one token"),
])
def test_impossible_batches_are_caught(runner, rows, new, message):
    step = runner.forward(make_batch(0, rows, new=new))
    runner.sample(step, None)
    with pytest.raises(AssertionError, match=message):
        step.result()


def test_slot_cannot_be_given_away_twice(runner):
    plan = Plan(0, [4, 5])
    drive(runner, [plan])
    again = Plan(0, [4, 5])
    step = runner.forward(plan_step(0, [again]))
    runner.sample(step, None)
    with pytest.raises(AssertionError, match="given away twice"):
        step.result()


def test_close_finishes_what_is_queued_and_refuses_more(decoder):
    runner = make_runner(decoder)
    plan = Plan(0, [4, 5], num_outputs=1)
    step = runner.forward(plan_step(0, [plan]))
    runner.sample(step, None)
    runner.close()
    runner.close()
    assert step.result().token_ids == Plan(0, [4, 5], num_outputs=1).expected()
    with pytest.raises(RuntimeError, match="closed"):
        runner.forward(make_batch(1, [(0, 2, 1, True, True)]))


def test_attributes_that_the_engine_reads(runner):
    assert (runner.num_blocks, runner.eos_ids, runner.limits.vocab_size) == (40, (1,), VOCAB_SIZE)
    assert runner.model_config is CONFIG
