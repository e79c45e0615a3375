"""Load: when requests are sent. One file per kind of load; none knows what a request holds."""
