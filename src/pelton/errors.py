"""Every error a user of Pelton can meet.

    PeltonError              base; its text is one line that names the field and the mend
    ├── ConfigError          an option, a configuration file or a dataclass field (also a ValueError)
    ├── RequestError         one request's fields (also a ValueError); becomes a 4xx
    ├── CheckpointError      a checkpoint that cannot be read or is not supported
    ├── EngineError          an engine directory that is refused: damaged, another format, another GPU
    ├── CapacityError        it does not fit: memory, blocks, queue
    ├── EngineDeadError      the engine process is gone
    └── ServerError          somebody's HTTP server could not be used (bench, evaluate)
"""


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


class ServerError(PeltonError):
    """A server under measurement could not be reached or answered unusably."""
