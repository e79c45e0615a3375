"""Rules as JUnit XML, which every CI system reads: a test case for each rule and cell."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from pelton.bench.compare.records import Comparison


def to_junit(comparison: Comparison) -> bytes:
    """One test suite per result held against the base. A rule that could not be judged is an error."""
    root = ET.Element("testsuites", name="pelton bench compare")
    for side in comparison.sides[1:]:
        found = [rule for rule in comparison.rules if rule.other == side.name]
        suite = ET.SubElement(root, "testsuite", name=f"{side.name} against {comparison.base.name}",
                              tests=str(len(found)), timestamp=side.started_at,
                              failures=str(sum(r.outcome == "failed" for r in found)),
                              errors=str(sum(r.outcome == "not known" for r in found)))
        for rule in found:
            case = ET.SubElement(suite, "testcase", classname=f"pelton.bench.{rule.cell}", name=rule.rule, time="0")
            if rule.outcome == "passed":
                ET.SubElement(case, "system-out").text = rule.reason
            else:
                ET.SubElement(case, "failure" if rule.outcome == "failed" else "error", message=rule.reason)
    ET.indent(root)
    return ET.tostring(root, encoding="utf-8", xml_declaration=True) + b"\n"
