"""One check per file: `check(probe)` returns results and touches the machine through the probe alone."""
