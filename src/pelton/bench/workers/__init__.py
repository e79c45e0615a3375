"""Several client processes, for loads that one core cannot send or stamp in time."""
