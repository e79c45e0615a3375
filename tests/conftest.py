"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from helpers import triton_interpret

triton_interpret.choose()


@pytest.fixture(autouse=True, scope="session")
def engine_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Engines are built into a folder of the run, never into the user's cache; processes of tests inherit it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PELTON_CACHE", str(tmp_path_factory.mktemp("engine-cache")))
        yield
