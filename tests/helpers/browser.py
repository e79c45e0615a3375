"""A page as a browser without a network draws it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pelton.bench.report.figure import Plot

NO_BROWSER = "no chromium here (scripts/setup-system.sh installs it)"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WATCH = "<script>window.faults = []; addEventListener('error', (e) => faults.push(e.message));</script>"
# Chooses every figure of every plot and writes down what was drawn, so that --dump-dom shows it.
PROBE = """<script>
const drawn = {};
for (const place of document.querySelectorAll(".plot")) {
  const picker = document.querySelector(`select[data-plot="${place.id}"]`);
  drawn[place.id] = [];
  for (let i = 0; i < (picker ? picker.options.length : 1); i++) {
    if (picker) { picker.selectedIndex = i; picker.dispatchEvent(new Event("change")); }
    drawn[place.id].push(place.querySelectorAll(".scatterlayer .trace, .heatmaplayer .hm").length);
  }
}
const found = { drawn, faults, resources: performance.getEntriesByType("resource").map((r) => r.name) };
document.body.insertAdjacentHTML("beforeend", `<pre id="probe">${JSON.stringify(found)}</pre>`);
</script>"""


def browse(page: str, tmp_path: Path) -> dict[str, Any]:
    """What a browser without a network makes of the page."""
    path = tmp_path / "report.html"
    path.write_text(page.replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
             "--proxy-server=127.0.0.1:9", f"--user-data-dir={tmp_path / 'profile'}"]
    dom = subprocess.run([BROWSER, *flags, "--dump-dom", path.as_uri()], capture_output=True, timeout=240,
                         check=True).stdout.decode()
    return json.loads(re.findall(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)[-1])


def drawings(plots: Sequence[Plot]) -> dict[str, list[int]]:
    """What is to be found: for each plot the number of traces of each of its figures."""
    return {p.id: [len(figure["data"]) for figure in p.figures.values()] for p in plots}
