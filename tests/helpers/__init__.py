"""Things tests of several packages share."""
