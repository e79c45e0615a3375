"""Every error a user of Pelton can meet.

    PeltonError              base; its text is one line that names the field and the mend
    ├── ConfigError          an option, a configuration file or a dataclass field (also a ValueError)
    ├── RequestError         one request's fields (also a ValueError); becomes a 4xx
    ├── CheckpointError      a checkpoint that cannot be read or is not supported
    ├── EngineError          an engine directory that is refused: damaged, another format, another GPU
    ├── CapacityError        it does not fit: memory, blocks, queue
    ├── EngineDeadError      the engine process is gone
    ├── MissingPartError     a library that the engine needs is not installed
    └── ServerError          somebody's HTTP server could not be used (bench, evaluate)
"""

from __future__ import annotations

ENGINE_PARTS = ("torch", "safetensors", "triton", "xgrammar", "numpy")
"""What `pip install 'pelton[engine]'` adds."""


class PeltonError(Exception):
    """Base of all errors with a message meant for the user."""


class ConfigError(PeltonError, ValueError):
    """An option or configuration value is wrong."""


class RequestError(PeltonError, ValueError):
    """A field of one request is wrong.

    Args:
        message: one line that names the field and the mend.
        param: the field's name as the client spelt it.
        code: a short machine-readable word, as in OpenAI's error object.
        status: the HTTP status it maps to.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, status: int = 400):
        super().__init__(message)
        self.param = param
        self.code = code
        self.status = status


class CheckpointError(PeltonError):
    """A checkpoint cannot be read, is damaged or holds an unsupported model."""


class EngineError(PeltonError):
    """An engine directory is refused; the text names the reason and the command that mends it."""


class CapacityError(PeltonError):
    """Something does not fit into the memory, blocks or queue it was given."""


class EngineDeadError(PeltonError):
    """The engine process ended while requests were waiting for it."""


class MissingPartError(PeltonError):
    """A library that comes with `pip install 'pelton[engine]'` is not there."""


class ServerError(PeltonError):
    """A server under measurement could not be reached or answered unusably."""


def missing_part(error: ModuleNotFoundError) -> MissingPartError | None:
    """A failed import as an error with its mend; None if the module is none that an install may leave out."""
    name = (error.name or "").partition(".")[0]
    if name not in ENGINE_PARTS:
        return None
    return MissingPartError(f"this needs {name}, which is not installed; get it with pip install 'pelton[engine]'")


def error_of_kind(kind: str | None, message: str, default: type[PeltonError] = PeltonError) -> PeltonError:
    """An error that came from another thread or process as its class's name and text; `default` if not one of ours."""
    cls = globals().get(kind or "")
    is_ours = isinstance(cls, type) and issubclass(cls, PeltonError)
    return cls(message) if is_ours else default(message)


def located(error: Exception) -> tuple[str, str]:
    """A msgspec error as (the field's path, what is wrong with it); the path is empty for the whole."""
    text, _, path = str(error).partition(" - at `$")
    return path[:-1].removeprefix("."), text
