"""Trains: the state, log-probabilities, optimizer, step and loop that all stages share."""
