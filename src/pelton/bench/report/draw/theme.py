"""The colours of the page's light theme, read from its style sheet."""

from __future__ import annotations

import functools
import re
from importlib.resources import files


@functools.cache
def theme() -> dict[str, str]:
    """Name -> #rrggbb; a colour with transparency as it looks on the card."""
    css = (files("pelton.bench.report") / "page.css").read_text(encoding="utf-8")
    block = css[css.index(":root {"):css.index("}")]
    found = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6}|rgba\([^)]*\))", block))
    return {name: _on_card(value, found["card"]) for name, value in found.items()}


def mix(color: str, other: str, share: float) -> str:
    """`share` of the first colour over the other."""
    return "#" + "".join(f"{round(a * share + b * (1 - share)):02x}" for a, b in zip(rgb(color), rgb(other)))


def rgb(color: str) -> tuple[int, int, int]:
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def _on_card(value: str, card: str) -> str:
    if value.startswith("#"):
        return value
    red, green, blue, share = (float(v) for v in value[5:-1].split(","))
    return mix(f"#{int(red):02x}{int(green):02x}{int(blue):02x}", card, share)
