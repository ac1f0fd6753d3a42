"""python .ci/lowest_versions.py > requirements-lowest.txt: the lower bounds of setup.py as pins."""

import ast
import pathlib

SETUP = pathlib.Path(__file__).resolve().parents[1] / "setup.py"


def requires() -> list[str]:
    """Returns the list REQUIRES of setup.py, read and not run."""
    for node in ast.parse(SETUP.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "REQUIRES":
            return ast.literal_eval(node.value)
    raise ValueError(f"{SETUP}: expected a list of strings named REQUIRES")


if __name__ == "__main__":
    print("# what setup.py allows at least; made by .ci/lowest_versions.py, tested by .ci/lowest")
    print("\n".join(line.replace(">=", "==") for line in requires()))
