"""The server's own metrics in Prometheus' text format (exposition format 0.0.4 and OpenMetrics)."""

from __future__ import annotations

import math
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

MAX_SERIES = 500
MAX_BYTES = 16 << 20
TIMEOUT_S = 5.0
_LEFT_OUT = ("_bucket", "_created")  # a histogram's sum and count tell its mean; the buckets are too many to keep


class Unreadable(Exception):
    """No metrics came; the text says why."""


def fetch(url: str) -> str:
    """The page of metrics.

    Raises:
        Unreadable: it does not come, or is no text of metrics.
    """
    # No proxy: what stands in the environment is for other hosts than the one under measurement.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=TIMEOUT_S) as response:
            return response.read(MAX_BYTES).decode("utf-8", errors="replace")
    except urllib.error.HTTPError as error:
        raise Unreadable(f"{url} answered {error.code}") from None
    except (OSError, ValueError) as error:
        raise Unreadable(f"{url}: {getattr(error, 'reason', error)}") from None


def parse(text: str) -> list[tuple[str, str, dict[str, str], float]]:
    """(name, unit, labels, value) of gauges, counters, and sums and counts of histograms and summaries.

    Raises:
        Unreadable: it is no Prometheus text.
    """
    values = []
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.endswith(_LEFT_OUT) or "quantile" in sample.labels or not math.isfinite(sample.value):
                    continue
                values.append((sample.name, family.unit, dict(sample.labels), float(sample.value)))
                if len(values) == MAX_SERIES:
                    return values
    except (ValueError, KeyError, IndexError) as error:
        raise Unreadable(f"not in Prometheus' format: {error}") from None
    if not values:
        raise Unreadable("no metrics in it")
    return values
