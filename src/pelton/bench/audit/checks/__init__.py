"""One module per check; `check(view)` yields its findings."""
