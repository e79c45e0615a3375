"""What is watched beside the load, from a process of its own so that it does not disturb the client's clock."""
