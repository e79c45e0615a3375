"""Results held against each other: the same workload, effects with intervals, rules for CI, baselines."""
