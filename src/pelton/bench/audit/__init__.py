"""The audit: what in a result does not mean what it seems to.

Each check is a module in `checks/` that reads a result and yields findings: a name, the evidence, what to do. The
checks know only the records, not how they were made; so a stored result can be audited again.
"""

from pelton.bench.audit.verdict import audit, is_answer_sound, verdicts

__all__ = ["audit", "is_answer_sound", "verdicts"]
