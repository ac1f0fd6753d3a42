"""The stages of `experiments.spct_rl`, one file each: what they read and write in the work folder,
and nothing else.
"""
