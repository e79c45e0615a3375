"""The engine process: its service over a runner without a model, and the client with the real thing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict, deque
from contextlib import aclosing
from pathlib import Path

import msgspec
import pytest
from helpers.fake_runner import FakeRunner, Limits, oracle
from helpers.harness import EOS, make_config, make_request

from pelton.build.prepare import ensure_engine
from pelton.config import ExecutorConfig, KvCacheConfig
from pelton.engine import messages
from pelton.engine.client import EngineClient
from pelton.engine.loop import EngineLoop
from pelton.engine.process import EngineService
from pelton.errors import CapacityError, ConfigError, EngineDeadError, EngineError, RequestError
from pelton.scheduler.scheduler import Scheduler
from pelton.types import Request, SamplingParams

CONFIG = ExecutorConfig(num_threads=1, kv_cache_config=KvCacheConfig(max_blocks=64))
DEADLINE_S = 30.0


class ScriptedChannel:
    """Gives the service one message per poll, then tells it to stop when the engine is idle."""

    def __init__(self, frames):
        self.inbox = deque(frames)
        self.sent = defaultdict(list)

    def poll(self, *, wait):
        if wait and not self.inbox:  # idle
            self.inbox.append((b"admin", messages.encode(messages.Shutdown())))
        return bool(self.inbox)

    def receive(self):
        return self.inbox.popleft()

    def send(self, client, frame):
        message = messages.decode_from_engine(frame)
        self.sent[client] += message.outputs if isinstance(message, messages.Outputs) else [message]


def serve(*frames, config=None, **limits):
    """What each client was sent in answer to (client, message) or raw frames."""
    limits = Limits(**limits)
    loop = EngineLoop(Scheduler(limits, config or make_config()), FakeRunner(limits, eos_ids=EOS), end_ids=EOS)
    raw = [list(frame) if isinstance(frame[1], bytes) else [frame[0], messages.encode(frame[1])] for frame in frames]
    channel = ScriptedChannel(raw)
    service = EngineService(loop, channel)
    service.run()
    assert loop.scheduler.pool.num_used == 0
    assert not service._clients
    assert not service._open
    return channel.sent


def request_for(name, **options):
    return make_request([1, 2, 3], request_id=name, **{"seed": 3, "max_tokens": 5, "ignore_eos": True, **options})


def tokens_of(outputs, request_id, index=0):
    return [t for o in outputs if (o.request_id, o.index) == (request_id, index) for t in o.token_ids]


def want(request, index=0):
    return oracle(request, request.sampling_params.seed + index, EOS, Limits()).token_ids


def test_each_client_gets_its_own_news():
    sent = serve((b"a", messages.Add(request_for("one", n=2))), (b"b", messages.Add(request_for("two", seed=9))))
    assert [tokens_of(sent[b"a"], "one", i) for i in range(2)] == [want(request_for("one", n=2), i) for i in range(2)]
    assert tokens_of(sent[b"b"], "two") == want(request_for("two", seed=9))
    assert {o.request_id for o in sent[b"a"]} == {"one"}


def test_a_repeated_id_is_refused_and_the_first_goes_on():
    sent = serve((b"a", messages.Add(request_for("one"))), (b"b", messages.Add(request_for("one", n=2))),
                 (b"b", messages.Cancel("one")), (b"b", messages.Finish("one", 0, 1)))
    assert tokens_of(sent[b"a"], "one") == want(request_for("one"))
    assert [(o.index, o.finish_reason, o.error_kind) for o in sent[b"b"]] == [
        (0, "error", "RequestError"), (1, "error", "RequestError")]


@pytest.mark.parametrize("frames", [
    [b"a", b""], [b"a", b"\xc1garbage"], [b"a", msgspec.msgpack.encode(["add", {}])],
    [b"a", msgspec.msgpack.encode(["unheard of"])], [b"a", msgspec.msgpack.encode(["add", {"input_token_ids": [1.5]}])],
    [b"a", msgspec.msgpack.encode(["add", {"input_token_ids": [1], "sampling_params": {"top_p": 7.0}}])],
])
def test_what_cannot_be_read_is_dropped(frames, capsys):
    limits = Limits()
    loop = EngineLoop(Scheduler(limits), FakeRunner(limits, eos_ids=EOS), end_ids=EOS)
    channel = ScriptedChannel([[b"a", messages.encode(messages.Add(request_for("one")))], frames])
    EngineService(loop, channel).run()
    assert tokens_of(channel.sent[b"a"], "one") == want(request_for("one"))
    assert "dropped an unreadable message" in capsys.readouterr().err


def test_what_cannot_run_is_told_with_its_kind():
    sent = serve((b"a", messages.Add(request_for("full", n=3))), (b"a", messages.Add(Request([], request_id="empty"))),
                 (b"a", messages.GetStats()), config=make_config(max_queue_size=2))
    stats = [m for m in sent[b"a"] if isinstance(m, messages.Stats)]
    ends = [(o.request_id, o.index, o.error_kind) for o in sent[b"a"] if isinstance(o, messages.Output)]
    assert ends == [*(("full", i, "CapacityError") for i in range(3)), ("empty", 0, "RequestError")]
    assert stats[0].num_waiting == 0


def test_cancel_and_finish_end_without_news():
    sent = serve((b"a", messages.Add(request_for("one", n=2))), (b"a", messages.Finish("one", 1, 0)),
                 (b"a", messages.Add(request_for("two"))), (b"a", messages.Cancel("two")),
                 (b"a", messages.Cancel("nobody")), (b"a", messages.Finish("nobody", 0, 1)))
    assert tokens_of(sent[b"a"], "one") == want(request_for("one", n=2))
    assert {(o.request_id, o.index) for o in sent[b"a"]} == {("one", 0)}


# The real process.


@pytest.fixture(scope="module")
def engine_dir():
    return ensure_engine("pelton-tiny", show_progress=False)


@pytest.fixture(scope="module")
def aio():
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def client(aio, engine_dir):
    client = aio.run(EngineClient.start(engine_dir, CONFIG))
    yield client
    aio.run(client.shutdown())


def greedy(num_tokens, **params):
    return SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, **params)


async def collect(client, request):
    tokens, ends = defaultdict(list), {}
    async for output in client.generate(request):
        assert output.error is None
        tokens[output.index] += output.token_ids
        if output.finish_reason is not None:
            ends[output.index] = output.finish_reason
    return dict(tokens), ends


async def until_idle(client):
    deadline = time.monotonic() + DEADLINE_S
    while (stats := await client.stats()).num_running or stats.num_waiting or stats.num_blocks_used:
        assert time.monotonic() < deadline, stats
    return stats


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_requests_at_once_each_get_what_they_get_alone(aio, client):
    prompts = [[5, 6, 7], [40, 41], [5, 6, 7, 8], list(range(100, 200))]

    async def run():
        alone = [await collect(client, Request(prompt, sampling_params=greedy(12))) for prompt in prompts]
        return alone, await asyncio.gather(
            *(collect(client, Request(prompt, sampling_params=greedy(12))) for prompt in prompts))

    alone, together = aio.run(run())
    assert together == alone
    assert [ends for _, ends in alone] == [{0: "length"}] * 4


def test_what_the_engine_says_of_itself(client, engine_dir):
    ready = client.ready
    assert (ready.max_seq_len, ready.num_blocks, ready.tokens_per_block, ready.vocab_size) == (2048, 64, 64, 6144)
    assert client.is_alive


def test_closing_the_iterator_cancels(aio, client):
    async def run():
        async with aclosing(client.generate(Request([1, 2, 3], sampling_params=greedy(1000)))) as outputs:
            async for _ in outputs:
                break
        return await until_idle(client)

    assert aio.run(run()).num_blocks_free == 64


def test_a_cancelled_task_cancels_its_request(aio, client):
    async def run():
        task = asyncio.create_task(collect(client, Request([1, 2, 3], sampling_params=greedy(1500))))
        while not (await client.stats()).num_running:
            pass
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_idle(client)

    aio.run(run())


def test_finish_ends_one_of_several_completions(aio, client):
    async def run():
        params = SamplingParams(max_tokens=40, n=3, seed=1, ignore_eos=True)
        request = Request([5, 6, 7], sampling_params=params)
        tokens = defaultdict(list)
        async for output in client.generate(request):
            tokens[output.index] += output.token_ids
            if output.index < 2 and len(tokens[output.index]) == 2:
                await client.finish(request.request_id, output.index, 2)
                await client.finish(request.request_id, output.index, 2)
        await client.finish("nobody", 0, 1)
        await until_idle(client)
        return {index: len(got) for index, got in tokens.items()}

    assert aio.run(run()) == {0: 2, 1: 2, 2: 40}


def test_finishing_the_last_completion_ends_the_iterator(aio, client):
    async def run():
        request = Request([5, 6, 7], sampling_params=greedy(1000))
        async for output in client.generate(request):
            assert output.finish_reason is None
            await client.finish(request.request_id, 0, 1)
        await until_idle(client)

    aio.run(run())


@pytest.mark.parametrize(("request_", "match"), [
    (Request([]), "at least one token"), (Request([6144]), "from 0 to 6143"), (Request([1] * 2048), "at most 2047")])
def test_what_the_engine_refuses(aio, client, request_, match):
    async def run():
        return [output async for output in client.generate(request_)]

    (output,) = aio.run(run())
    assert (output.finish_reason, output.error_kind) == ("error", "RequestError")
    assert output.error is not None
    assert match in output.error


def test_what_never_reaches_the_engine(aio, client):
    async def run():
        with pytest.raises(RequestError, match=r"input_token_ids\[0\]: Expected `int`"):
            await collect(client, Request([1.5]))
        first = client.generate(Request([1, 2], request_id="mine", sampling_params=greedy(500)))
        await anext(first)
        with pytest.raises(RequestError, match="'mine' is in use"):
            await collect(client, Request([1, 2], request_id="mine"))
        assert (await anext(first)).finish_reason is None
        await first.aclose()
        await until_idle(client)

    aio.run(run())


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signals_meant_for_the_server_are_left_to_it(aio, client, signum):
    """Whoever signals a whole process group or control group would otherwise cut off what the server lets end."""
    assert os.getsid(client._process.pid) != os.getsid(0)
    os.kill(client._process.pid, signum)
    assert aio.run(collect(client, Request([5, 6], sampling_params=greedy(3))))[1] == {0: "length"}


def test_stats_of_many_askers(aio, client):
    async def run():
        return await asyncio.gather(*(client.stats() for _ in range(20)))

    steps = [stats.num_steps for stats in aio.run(run())]
    assert steps == sorted(steps)


# Ends of the process. Each test has a process of its own.


def test_a_killed_process_fails_what_runs_and_all_that_follows(aio, engine_dir):
    async def run():
        client = await EngineClient.start(engine_dir, CONFIG)
        running = asyncio.create_task(collect(client, Request([1, 2], sampling_params=greedy(2000))))
        while not (await client.stats()).num_running:
            pass
        os.kill(client._process.pid, signal.SIGKILL)
        for call in (running, client.stats(), collect(client, Request([1, 2]))):
            with pytest.raises(EngineDeadError, match="has ended: it was killed by SIGKILL"):
                await call
        assert not client.is_alive
        await client.finish("nobody", 0, 1)
        await client.shutdown()
        await client.shutdown()

    aio.run(run())


def test_shutdown_ends_the_process_and_what_runs(aio, engine_dir, capfd):
    async def run():
        client = await EngineClient.start(engine_dir, CONFIG)
        running = asyncio.create_task(collect(client, Request([1, 2], sampling_params=greedy(2000))))
        while not (await client.stats()).num_running:
            pass
        await client.shutdown()
        with pytest.raises(EngineDeadError, match="it was shut down"):
            await running
        await client.shutdown()
        return client

    client = aio.run(run())
    assert client._process.returncode == 0
    assert capfd.readouterr().err == ""


def test_an_engine_that_is_refused_says_why(aio, engine_dir, tmp_path):
    damaged = shutil.copytree(engine_dir, tmp_path / "damaged")
    weights = damaged / "weights-0.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    cases = [(damaged, CONFIG, EngineError, r"weights-0\.safetensors"),
             (tmp_path / "nowhere", CONFIG, EngineError, "nowhere"),
             (engine_dir, ExecutorConfig(max_batch_size=1000), ConfigError, "max_batch_size must be at most 256"),
             (engine_dir, ExecutorConfig(kv_cache_config=KvCacheConfig(max_blocks=2**40)), CapacityError, "max_blocks")]

    async def refuse(path, config, error, match):
        with pytest.raises(error, match=match):
            await EngineClient.start(path, config)

    async def run():
        await asyncio.gather(*(refuse(*case) for case in cases))

    aio.run(run())


@pytest.fixture
def spawned(monkeypatch):
    """The processes that the client starts; `env` goes into theirs."""
    class Spawned(list):
        env: dict[str, str] = {}  # noqa: RUF012
        on_start = staticmethod(lambda process: None)

    spawned, create = Spawned(), asyncio.create_subprocess_exec

    async def spawn(*command, **options):
        process = await create(*command, **options, env={**os.environ, **spawned.env})
        spawned.append(process)
        spawned.on_start(process)
        return process

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    return spawned


def test_a_process_that_dies_while_it_loads(aio, engine_dir, spawned):
    spawned.on_start = lambda process: process.kill()
    with pytest.raises(EngineDeadError, match=r"was killed by SIGKILL.* while loading"):
        aio.run(EngineClient.start(engine_dir, CONFIG))


def test_start_can_be_cancelled(aio, engine_dir, spawned):
    async def run():
        task = asyncio.create_task(EngineClient.start(engine_dir, CONFIG))
        while not spawned:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    aio.run(run())
    assert spawned[0].returncode == -signal.SIGKILL


def test_without_torch_the_mend_is_told(aio, engine_dir, spawned, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['torch'] = None\n")
    spawned.env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    with pytest.raises(Exception, match=r"torch, which is not installed.*pip install 'pelton\[engine\]'") as caught:
        aio.run(EngineClient.start(engine_dir, CONFIG))
    assert type(caught.value).__name__ == "MissingPartError"


def test_a_fault_of_the_loop_is_told_with_its_text(aio, engine_dir, spawned, tmp_path):
    """A step that cannot even be planned: nothing the scheduler foresees, so the process ends, saying why."""
    (tmp_path / "sitecustomize.py").write_text(
        "import pelton.scheduler.scheduler as scheduler\n"
        "def broken(self): raise ZeroDivisionError('the plan is void')\n"
        "scheduler.Scheduler.schedule = broken\n")
    spawned.env = {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])}

    async def run():
        client = await EngineClient.start(engine_dir, CONFIG)
        with pytest.raises(EngineDeadError, match="has ended: ZeroDivisionError: the plan is void"):
            await collect(client, Request([1, 2]))
        await client.shutdown()

    aio.run(run())


def test_modules_in_the_working_directory_are_left_alone(aio, engine_dir, spawned, tmp_path, monkeypatch):
    for name in ("msgspec", "torch", "pelton"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a stranger was imported')\n")
    monkeypatch.chdir(tmp_path)

    async def run():
        client = await EngineClient.start(engine_dir, CONFIG)
        await client.shutdown()

    aio.run(run())


PARENT = """
import asyncio, json, sys
from pathlib import Path
from pelton.config import ExecutorConfig, KvCacheConfig
from pelton.engine.client import EngineClient

async def main():
    client = await EngineClient.start(Path(sys.argv[1]), ExecutorConfig(kv_cache_config=KvCacheConfig(max_blocks=64)))
    print(client._process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_the_process_ends_with_its_parent(engine_dir):
    with subprocess.Popen([sys.executable, "-c", PARENT, str(engine_dir)], stdout=subprocess.PIPE) as parent:
        pid = int(parent.stdout.readline())
        assert is_running(pid)
        parent.kill()
    wait_until(lambda: not is_running(pid))


def test_a_process_without_standard_input_ends_at_once(engine_dir):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "pelton.engine.process", "--engine", str(engine_dir), "--socket",
                   str(theirs.fileno())]
        done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *command], capture_output=True, timeout=DEADLINE_S,
                              pass_fds=(theirs.fileno(),))
    assert done.returncode == 1
    assert b"Traceback" not in done.stderr
