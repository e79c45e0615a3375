"""Parts of scripts/train_tiny.py: how the shipped pelton-tiny checkpoint is made."""
