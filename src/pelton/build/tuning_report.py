"""What an engine's tuning.json says, as a table for people."""

from __future__ import annotations

import sys
from typing import Any

COLUMNS = ("weight", "rows", "kernel", "µs", "TB/s", "TFLOP/s", "% of limit")


def print_tuning(tuning: dict[str, Any]) -> None:
    """The measured choices on standard output, aligned; nothing for an untuned engine."""
    rows = [COLUMNS, *(_row(choice) for choice in tuning.get("choices", []))]
    if len(rows) == 1:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    lines = ["  ".join(cell.ljust(width) if column in (0, 2) else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    limits = tuning["limits"]
    print(f"measured on {tuning['gpu_name']}; limits {limits['read_tb_per_s']:.2f} TB/s and "
          f"{limits['matrix_tflop_per_s']:.0f} TFLOP/s ({limits['source']})", *lines, sep="\n", file=sys.stdout)


def _row(choice: dict[str, Any]) -> tuple[str, ...]:
    weight = f"{choice['n']} x {choice['k']}{' gated' if choice['is_gated'] else ''}"
    config = " ".join(str(value) for value in choice["config"].values())
    return (weight, str(choice["num_rows"]), f"{choice['kernel']} {config}".strip(), f"{choice['us']:.1f}",
            f"{choice['tb_per_s']:.2f}", f"{choice['tflop_per_s']:.0f}", f"{100 * choice['share_of_limit']:.0f}")
