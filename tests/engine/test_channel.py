"""The channel between server and engine process: whole messages, in order, whatever the sockets do."""

import asyncio
import random

import pytest
import uvloop

from pelton.engine.channel import EngineEnd, FrameReader, ServerEnd, framed, socket_pair


@pytest.fixture
def pair():
    ours, theirs = socket_pair()
    with ours, theirs:
        yield ours, theirs


def random_messages(seed, count):
    draw = random.Random(seed)
    return [draw.randbytes(draw.choice((0, 1, 3, 4, 5, 100, 70_000))) for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
def test_messages_come_whole_however_the_bytes_are_cut(seed):
    messages = random_messages(seed, 40)
    stream, draw, reader, got = b"".join(map(framed, messages)), random.Random(seed), FrameReader(), []
    while stream:
        size = draw.choice((1, 2, 7, 1000, 100_000))
        got += reader.feed(stream[:size])
        stream = stream[size:]
    assert got == messages


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_both_ends_exchange_messages(pair, loop_factory):
    ours, theirs = pair
    there, back = random_messages(1, 60), random_messages(2, 60)

    def echo():
        engine, got = EngineEnd([theirs]), []
        while len(got) < len(there):
            assert engine.poll(wait=True)
            number, message = engine.receive()
            assert number == 0
            got.append(message)
        for message in back:
            engine.send(0, message)
        engine.close()
        return got

    async def run():
        got, all_there = [], asyncio.Event()

        def take(message):
            got.append(message)
            if len(got) == len(back):
                all_there.set()

        end = ServerEnd(take)
        await end.open(ours)
        engine = asyncio.create_task(asyncio.to_thread(echo))
        for message in there:
            end.send(message)
        await asyncio.wait_for(all_there.wait(), 20)
        end.close()
        return await engine, got

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(run()) == (there, back)


def test_a_server_that_does_not_read_holds_up_nobody():
    """What it is sent waits for it; the other server gets its own meanwhile."""
    pairs = [socket_pair() for _ in range(2)]
    engine = EngineEnd([theirs for _, theirs in pairs])
    large = [bytes([number]) * 500_000 for number in range(20)]
    for message in large:
        engine.send(0, message)  # far more than the socket holds
    engine.send(1, b"news")
    assert next(FrameReader().feed(pairs[1][0].recv(100))) == b"news"
    assert not engine.poll(wait=False)
    reader, got = FrameReader(), []
    while len(got) < len(large):
        got += reader.feed(pairs[0][0].recv(2**20))
        engine.poll(wait=False)
    assert got == large
    engine.close()
    for ours, _ in pairs:
        ours.close()


def test_a_server_that_is_gone_is_forgotten(pair):
    ours, theirs = pair
    engine = EngineEnd([theirs])
    ours.close()
    assert not engine.poll(wait=False)
    engine.send(0, b"nobody reads this")
    assert not engine.poll(wait=False)
    engine.close()
    assert theirs.fileno() == -1


def test_sending_to_a_server_that_has_just_gone_does_no_harm(pair):
    ours, theirs = pair
    engine = EngineEnd([theirs])
    ours.close()
    engine.send(0, b"nobody reads this")
    engine.close()


def test_a_message_that_is_there_is_found_while_spinning(pair):
    ours, theirs = pair
    engine = EngineEnd([theirs], spin_s=60.0)
    ours.send(framed(b"work"))
    assert engine.poll(wait=True)
    assert engine.receive() == (0, b"work")
    engine.close()


def test_an_end_whose_engine_is_gone_drops_what_it_is_given(pair):
    ours, theirs = pair
    theirs.close()

    async def run():
        end = ServerEnd(lambda message: None)
        end.send(b"before it is open")
        await end.open(ours)
        end.send(b"to nobody")
        await asyncio.sleep(0)
        end.send(b"to nobody")
        end.close()
        end.send(b"after")

    asyncio.run(run())
