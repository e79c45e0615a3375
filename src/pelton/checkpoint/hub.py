"""Finds a model by name: the one that ships with Pelton, a local folder, or a repository on the Hugging Face hub.

Only what is needed is fetched: safetensors, configs, tokenizer and template; never pickles, never code.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from importlib.resources import files
from pathlib import Path
from typing import Any

from pelton.checkpoint.reader import INDEX_NAME, SINGLE_NAME, missing_weights, weight_files
from pelton.errors import CheckpointError

SHIPPED_MODELS = ("pelton-tiny",)
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_CONFIG_FILES = ("config.json", "generation_config.json")
_SMALL_FILES = ("*.json", "*.jinja", "tokenizer.model", "merges.txt")


def resolve_model(name: str, *, revision: str | None = None, endpoint: str | None = None,
                  cache_dir: Path | None = None) -> Path:
    """The folder of a model: of the shipped one, a local one as it is, or a hub model's, fetched with progress.

    A local path never touches the network. A hub model that cannot be looked up because the hub is out of reach is
    taken from the cache of earlier downloads.

    Args:
        name: "pelton-tiny", a path, or a hub id as "Qwen/Qwen2.5-0.5B-Instruct".
        revision: branch, tag or commit of a hub model.
        endpoint: the hub's address; none: HF_ENDPOINT, else https://huggingface.co.
        cache_dir: where downloads are kept; none: what HF_HUB_CACHE and HF_HOME say.

    Raises:
        CheckpointError: no such folder or model, no access, no network, or no weights that can be read.
    """
    if not name:
        raise CheckpointError("model: the name is empty; give a hub id, a checkpoint directory or pelton-tiny")
    if name in SHIPPED_MODELS:
        path = shipped_model(name)
    elif _is_path(name):
        path = _local_model(name)
    else:
        return _download(name, revision, endpoint, cache_dir)
    if revision is not None:
        raise CheckpointError(f"revision: {name} is not a hub model and has none; leave it out")
    return path


def resolve_config(name: str, *, revision: str | None = None, endpoint: str | None = None,
                   cache_dir: Path | None = None) -> Path:
    """A folder with the model's config.json: as `resolve_model`, but of a hub model no weights are fetched.

    Raises:
        CheckpointError: no such folder or model, no access, or no network.
    """
    if not name or name in SHIPPED_MODELS or _is_path(name):
        return resolve_model(name, revision=revision)
    _require_hub_id(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    where: dict[str, Any] = {"endpoint": endpoint, "cache_dir": cache_dir}
    with _explained(name, revision):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=list(_CONFIG_FILES), **where))
        except LocalEntryNotFoundError as error:
            return _cached(name, revision, where, error)


def absolute_source(name: str) -> str:
    """A model's name as it can be used from any folder, for the record: paths become absolute."""
    return str(Path(name).expanduser().resolve()) if name not in SHIPPED_MODELS and _is_path(name) else name


def shipped_model(name: str) -> Path:
    """Folder of a model that is package data."""
    path = Path(str(files("pelton") / "models_data" / name))
    if not path.is_dir():
        raise CheckpointError(f"{name}: not part of this installation ({path} is missing); install Pelton again")
    return path


def _is_path(name: str) -> bool:
    """What exists, or looks like a path, is never looked up on the hub."""
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..") or Path(name).exists()


def _local_model(name: str) -> Path:
    path = Path(name).expanduser()
    if path.is_file():
        raise CheckpointError(f"model: {path} is a file; give the folder with config.json and the safetensors")
    if not path.is_dir():
        raise CheckpointError(f"model: {path} does not exist")
    return path


def _download(name: str, revision: str | None, endpoint: str | None, cache_dir: Path | None) -> Path:
    _require_hub_id(name)
    from huggingface_hub import HfApi

    where: dict[str, Any] = {"endpoint": endpoint, "cache_dir": cache_dir}
    with _explained(name, revision):
        try:
            info = HfApi(endpoint=endpoint).model_info(name, revision=revision)
        except Exception as error:
            if not _is_unreachable(error):
                raise
            return _cached(name, revision, where, error)
        wanted = wanted_files([item.rfilename for item in info.siblings or []], name)
        return _fetch(name, revision, wanted, where)


def _fetch(name: str, revision: str | None, wanted: list[str], where: dict[str, Any]) -> Path:
    """Downloads, and goes on where a broken transfer stopped.

    By the revision's own name, not the commit it stands for: that is how a start without network finds it again.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    for wait_seconds in (1, 2, 4, None):
        try:
            return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, **where))
        except HTTPError as error:
            if wait_seconds is None or isinstance(error, HfHubHTTPError):
                raise
            time.sleep(wait_seconds)
    raise AssertionError("the last attempt returns or raises")


def _require_hub_id(name: str) -> None:
    if not _HUB_ID.fullmatch(name) or ".." in name or "--" in name:
        raise CheckpointError(f"model: {name!r} is neither an existing folder nor a hub id of the form "
                              "organization/model")


def wanted_files(names: list[str], repository: str) -> list[str]:
    """The files of a hub repository that are fetched, all from its root.

    Raises:
        CheckpointError: it has no weights that can be read.
    """
    root = [name for name in names if "/" not in name]
    small = [name for name in root if any(fnmatchcase(name, pattern) for pattern in _SMALL_FILES)]
    if SINGLE_NAME in root:
        return [name for name in small if name != INDEX_NAME] + [SINGLE_NAME]
    if INDEX_NAME in root:
        return small + [name for name in root if fnmatchcase(name, "model-*.safetensors")]
    raise CheckpointError(f"{repository}: {missing_weights(root)}")


def _cached(name: str, revision: str | None, where: dict[str, Any], error: Exception) -> Path:
    """The last download, for when the hub is out of reach."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    unreachable = f"{name}: the hub cannot be reached ({_first_line(error)})"
    mend = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, or give a local folder"
    try:
        path = Path(snapshot_download(name, revision=revision, local_files_only=True, **where))
    except LocalEntryNotFoundError as miss:
        # Files that we never fetch make a snapshot incomplete in the library's eyes; what we need is looked at below.
        if not getattr(miss, "snapshot_path", None):
            raise CheckpointError(f"{unreachable} and the model is not in the cache of earlier downloads; {mend}"
                                  ) from None
        path = Path(miss.snapshot_path)
    try:
        weight_files(path)
    except CheckpointError as gap:
        raise CheckpointError(f"{unreachable} and an earlier download is incomplete ({gap}); {mend}") from None
    return path


@contextmanager
def _explained(name: str, revision: str | None) -> Iterator[None]:
    """Turns huggingface_hub's errors into ours."""
    from huggingface_hub import errors

    at = f" at revision {revision!r}" if revision else ""
    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(f"{name}: access is gated; accept its terms on the model's page, then run `hf auth "
                              "login` or set HF_TOKEN to a token of that account") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name}: no such revision {revision!r} on the hub") from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"{name}: neither a local folder nor a model on the hub; check the spelling, or set "
                              "HF_TOKEN if it is private") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        mend = "set HF_TOKEN to a token that may read it" if status in (401, 403) else "try again later"
        raise CheckpointError(f"{name}{at}: the hub answered {status} ({_first_line(error)}); {mend}") from None
    except (errors.HTTPError, OSError) as error:
        raise CheckpointError(f"{name}{at}: the download failed ({_first_line(error)}); run the command again, it goes "
                              "on where it stopped") from None


def _is_unreachable(error: Exception) -> bool:
    """Whether an error means that the hub was never reached or is down, not that it answered no."""
    from huggingface_hub import errors

    if isinstance(error, errors.HfHubHTTPError):
        return getattr(error.response, "status_code", 0) >= 500
    return isinstance(error, (errors.HTTPError, errors.OfflineModeIsEnabled, OSError))


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
