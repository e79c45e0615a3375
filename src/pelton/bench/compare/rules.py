"""Rules for CI: `ttft_p95 > +10%` fails a comparison in which the P95 of TTFT rose by more than a tenth.

Forms, for any figure and <, <=, > or >=:

    ttft_p95 > +10%           relative change
    ttft_p95 > +20ms          change in the figure's unit, which may be left out
    output_throughput < 500   the figure itself

They are held against the figures as they are shown (`Effect`). A rise from 0 is more than any percentage. A rule that
cannot be judged, because a figure was withheld or the audit failed the cell, counts as broken: a check must be able to
fail.
"""

from __future__ import annotations

import math
import operator
import re
from dataclasses import dataclass
from typing import Literal

from pelton.bench.compare.figures import Figure, parse_figure
from pelton.bench.compare.records import CellComparison, Effect, Outcome, RuleOutcome
from pelton.bench.table import number
from pelton.errors import ConfigError

_OPERATORS = {">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le}
_PATTERN = re.compile(r"\s*([a-z0-9_.]+)\s*(>=|<=|>|<)\s*([+-]?)(\d+(?:\.\d+)?)\s*(\S*)\s*")


@dataclass(frozen=True)
class Rule:
    """One condition under which a comparison fails."""

    text: str
    figure: Figure
    sign: str
    """The operator, as in the text."""
    threshold: float
    """A fraction of the base (change), or in the figure's unit."""
    form: Literal["change", "difference", "level"]

    def judge(self, cell: CellComparison, *, needs_significance: bool, unfit: str = "") -> RuleOutcome:
        """Holds the rule against a cell.

        Args:
            needs_significance: it fails only where the whole interval lies beyond the threshold, so that noise alone
                seldom fails it. A level, and a change from or to 0, can have no interval and is taken as it is.
            unfit: why the cell's figures do not mean what they seem to. No rule is judged by them then, but one of
                failed requests can still fail: these are counted, and are often the very reason.
        """
        outcome, reason = self._hold(cell, needs_significance=needs_significance)
        if unfit:
            is_counted = outcome == "failed" and self.figure.metric.name == "errors"
            outcome, reason = "failed" if is_counted else "not known", f"{unfit}; {reason}"
        return RuleOutcome(rule=self.text, other=cell.other, cell=cell.cell, outcome=outcome, reason=reason)

    def _hold(self, cell: CellComparison, *, needs_significance: bool) -> tuple[Outcome, str]:
        effect = next((e for e in cell.effects if e.metric == self.figure.name), None)
        if effect is None:
            return "not known", "the cell has no such figure"
        if (value := self._value(effect)) is None:
            return "not known", effect.note
        is_beyond = _OPERATORS[self.sign](value, self.threshold)
        if is_beyond and needs_significance and self.form != "level":
            is_beyond = self._is_shown(effect)
        return "failed" if is_beyond else "passed", describe(effect)

    def _value(self, effect: Effect) -> float | None:
        if self.form == "change" and effect.is_rise_from_zero:
            return math.inf
        return {"change": effect.change, "difference": effect.difference, "level": effect.other}[self.form]

    def _is_shown(self, effect: Effect) -> bool:
        """Whether the end of the interval that is nearer to the threshold is beyond it too."""
        if 0 in (effect.base, effect.other):
            return True
        end = effect.low if self.sign in (">", ">=") else effect.high
        if end is None:
            return False
        return _OPERATORS[self.sign](end if self.form == "change" else end * effect.base, self.threshold)


def parse_rule(text: str) -> Rule:
    """Reads one rule.

    Raises:
        ConfigError: it is no rule, or names no figure; the text says what is wanted.
    """
    found = _PATTERN.fullmatch(text)
    if found is None:
        raise ConfigError(f"fail_if must be FIGURE, an operator (<, <=, >, >=) and a threshold, such as "
                          f"'ttft_p95 > +10%' or 'output_throughput < 500', got {text!r}")
    name, sign, plus_minus, digits, unit = found.groups()
    figure = parse_figure(name)
    value = float(plus_minus + digits)
    if unit == "%" and figure.metric.unit != "%":
        if not plus_minus:
            raise ConfigError(f"fail_if {text!r}: a change in percent needs its sign, such as +{digits}% or -{digits}%")
        return Rule(text, figure, sign, value / 100, "change")
    if unit == "s" and figure.metric.unit == "ms":
        value, unit = value * 1000, "ms"
    if unit not in ("", figure.metric.unit):
        raise ConfigError(f"fail_if {text!r}: {name} is in {figure.metric.unit}, not in {unit}")
    return Rule(text, figure, sign, value, "difference" if plus_minus else "level")


def describe(effect: Effect) -> str:
    """One line: from what to what, the change and its interval."""
    text = f"{number(effect.base)} -> {number(effect.other)} {effect.unit}"
    if effect.change is None:
        return f"{text} ({effect.note})"
    return f"{text}, {show_change(effect)}"


def show_change(effect: Effect) -> str:
    """+12.3 % [+8.1, +16.7], with a ? for an open end; no brackets without any interval."""
    if effect.change is None:
        return "–"
    if effect.low is None and effect.high is None:
        return f"{_percent(effect.change)} %"
    return f"{_percent(effect.change)} % [{_percent(effect.low)}, {_percent(effect.high)}]"


def _percent(share: float | None) -> str:
    """A share in percent with its sign; plain 0.0 where it rounds to that."""
    return "?" if share is None else f"{round(100 * share, 1) or 0.0:+.1f}"
