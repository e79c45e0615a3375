import pytest
from hypothesis import given
from hypothesis import strategies as st

from pelton.bench.framing import FramingError, ResponseFramer

LENGTH = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nContent-Type: text/plain\r\n\r\nhello world"
CHUNKED = (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
           b"5\r\nhello\r\n6;note=1\r\n world\r\n0\r\nTrailer: x\r\n\r\n")
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n" + LENGTH


def feed(pieces):
    framer = ResponseFramer()
    ends = [framer.feed(stamp, piece) for stamp, piece in enumerate(pieces)]
    return framer, ends


@pytest.mark.parametrize("whole", [LENGTH, CHUNKED, INTERIM])
@given(data=st.data())
def test_any_cut_gives_the_same_body(whole, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)]) if a < b]
    framer, ends = feed(pieces)
    assert framer.response.body == b"hello world"
    assert framer.response.status == 200
    assert ends[-1]
    assert not any(ends[:-1])
    assert [stamp for stamp, _ in framer.response.pieces] == sorted(stamp for stamp, _ in framer.response.pieces)


@pytest.mark.parametrize("whole", [LENGTH, CHUNKED, INTERIM])
@given(data=st.data())
def test_lazy_cutting_finds_the_same_pieces_and_the_same_end(whole, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)]) if a < b]
    eager, ends = feed(pieces)
    lazy = ResponseFramer()
    assert [lazy.take(stamp, piece) for stamp, piece in enumerate(pieces)] == ends
    assert lazy.response == eager.response


def test_lazy_cutting_keeps_what_arrived_of_a_broken_answer():
    lazy = ResponseFramer()
    lazy.take(1, CHUNKED[:60])
    lazy.take(2, CHUNKED[60:70])
    lazy.cut()
    assert lazy.response.body == feed([CHUNKED[:60], CHUNKED[60:70]])[0].response.body == b"hello wo"


def test_each_piece_keeps_the_stamp_of_its_arrival():
    framer = ResponseFramer()
    framer.feed(10, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    framer.feed(20, b"3\r\none\r\n")
    framer.feed(30, b"3\r\ntwo\r\n3\r\nnew\r\n0\r\n\r\n")
    assert framer.response.pieces == [(20, b"one"), (30, b"two"), (30, b"new")]
    assert framer.response.first_byte_ns == 10


def test_body_that_ends_with_the_connection():
    framer, ends = feed([b"HTTP/1.1 200 OK\r\n\r\nab", b"cd"])
    assert ends == [False, False]
    assert framer.end_of_connection()
    assert framer.response.body == b"abcd"
    assert not framer.response.keeps_alive


@pytest.mark.parametrize("pieces", [[LENGTH[:-1]], [CHUNKED[:-4]], [b"HTTP/1.1 200"]])
def test_cut_off_response_is_not_whole(pieces):
    framer, _ = feed(pieces)
    assert not framer.end_of_connection()


@pytest.mark.parametrize("head", [
    b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n"])
def test_connections_that_close(head):
    framer, ends = feed([head])
    assert ends == [True]
    assert not framer.response.keeps_alive


@pytest.mark.parametrize("data", [
    b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/2 200\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n", LENGTH + b"more",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"x" * 70_000])
def test_refuses_what_is_no_response(data):
    with pytest.raises(FramingError):
        feed([data])
