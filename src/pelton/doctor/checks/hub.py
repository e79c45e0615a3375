"""Whether models can be downloaded. Without the hub, local models work: never more than a warning."""

from __future__ import annotations

from pelton.doctor.facts import UnavailableError
from pelton.doctor.probe import Probe
from pelton.doctor.result import Result

_TRUE = ("1", "on", "yes", "true")


def check(probe: Probe) -> list[Result]:
    for variable in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if (probe.environ(variable) or "").lower() in _TRUE:
            return [Result("hub", "info", f"not asked: {variable} is set; local and downloaded models work")]
    url = probe.environ("HF_ENDPOINT") or "https://huggingface.co"
    try:
        seconds = probe.reach(url)
    except UnavailableError as error:
        return [Result("hub", "warn", f"{url} does not answer ({error}); local and downloaded models work",
                       "check network and proxy (HTTPS_PROXY), set HF_ENDPOINT to a mirror, or HF_HUB_OFFLINE=1")]
    return [Result("hub", "ok", f"{url} answers in {seconds * 1e3:.0f} ms")]
