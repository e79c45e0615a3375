import pytest
from helpers.fake_engine import FakeEngineClient
from helpers.live_server import LiveServer
from helpers.tokenizers import write_tokenizer

from pelton.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory):
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tokenizer(tokenizer_dir):
    return Tokenizer.from_dir(tokenizer_dir)


@pytest.fixture
def engine(tokenizer):
    return FakeEngineClient(tokenizer)


@pytest.fixture
def serve(engine, tokenizer, tokenizer_dir):
    """Starts servers with given options; `engine=` takes another engine, `tokenizer=` another tokenizer."""
    servers = []

    def start(**options):
        given = {"engine": engine, "tokenizer": tokenizer, "tokenizer_dir": tokenizer_dir, **options}
        servers.append(LiveServer(**given))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def server(serve):
    return serve()
