"""How a prompt becomes a request and an answer becomes text, stamps and counts. One file per protocol."""
