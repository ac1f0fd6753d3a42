"""Walks the equations of a traced program."""

from collections.abc import Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    """Yields every equation, those of inner programs (loops, branches, calls) included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, (tuple, list)) else (value,):
                if isinstance(item, ClosedJaxpr):
                    yield from equations(item.jaxpr)
                elif isinstance(item, Jaxpr):
                    yield from equations(item)
