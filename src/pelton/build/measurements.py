"""Measurements of kernels, kept per type of GPU, so that the next build of the same shapes makes none."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pelton.config import to_dict
from pelton.errors import ConfigError
from pelton.hashing import digest

if TYPE_CHECKING:
    from pelton.kernels.linear.choices import Measurement
    from pelton.kernels.linear.measured import Setting
    from pelton.kernels.linear.tuning import Product

FOLDER = "measurements"


class MeasurementCache:
    """Measurements of one type of GPU with one set of kernels and versions, in one JSON file.

    A damaged or unwritable file costs time and nothing else. Two builds that save at once lose some of each other's
    measurements, no more.

    Args:
        root: the folder of all that can be made again.
        setting: where measurements are made; the driver's version does not part them.
    """

    def __init__(self, root: Path, setting: Setting):
        parts = {name: value for name, value in to_dict(setting).items() if name != "driver"}
        key = digest(json.dumps(parts, sort_keys=True).encode())[:12]
        slug = re.sub(r"[^a-z0-9]+", "-", setting.gpu_name.lower()).strip("-")
        self._file = root / FOLDER / f"{slug}-{key}.json"
        self._setting = to_dict(setting)

    def find(self, products: list[Product], dtype: str) -> list[Measurement]:
        """What is known of products with weights and inputs of a type."""
        from pelton.kernels.linear.measured import read_measurements

        stored, found = self._load(), []
        for product in products:
            try:
                found += read_measurements(stored.get(_key(product, dtype), []))
            except (ConfigError, TypeError):
                continue
        return found

    def record(self, products: list[Product], dtype: str, measurements: list[Measurement]) -> None:
        """Adds or replaces what is known of products."""
        stored = self._load()
        for product in products:
            made = {m.num_rows: m.to_json() for m in measurements if m.shape == product.shape}
            if made:
                stored[_key(product, dtype)] = [made[num_rows] for num_rows in sorted(made)]
        temporary = self._file.with_name(f".{self._file.name}.tmp-{os.getpid()}")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"setting": self._setting, "products": stored}, indent=1))
            os.replace(temporary, self._file)
        except OSError:
            return

    def _load(self) -> dict[str, Any]:
        try:
            products = json.loads(self._file.read_bytes())["products"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return products if isinstance(products, dict) else {}


def _key(product: Product, dtype: str) -> str:
    """A product with all that its time depends on."""
    return json.dumps({**to_dict(product), "dtype": dtype}, sort_keys=True)
