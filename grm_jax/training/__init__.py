"""State, log-probabilities, optimizer and the one jitted step that pretraining, RFT, RL and every
reward model share.
"""
