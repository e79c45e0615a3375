"""Protocols: how a prompt becomes a request body and an answer becomes tokens and stamps. One file each."""
