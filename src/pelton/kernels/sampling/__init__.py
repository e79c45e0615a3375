"""Drawing the next token: `reference` is the oracle, `cpu` the batched form, `random` the random stream of both."""
