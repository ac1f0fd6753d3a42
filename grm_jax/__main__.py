"""`python -m grm_jax`: the same as the command `grm`."""

import sys

from grm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
