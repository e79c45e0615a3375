"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "info", "warn", "fail"]


@dataclass(frozen=True)
class Result:
    """One line of the report."""

    name: str
    status: Status
    """ok; info: worth knowing, nothing to mend; warn: works, with a loss; fail: Pelton will not run as it should."""
    found: str
    mend: str = ""
    """What to do about it; every warn and fail has one."""

    def __post_init__(self) -> None:
        assert self.found
        assert self.mend or self.status in ("ok", "info"), self.name
