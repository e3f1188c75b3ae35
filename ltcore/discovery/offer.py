"""A method that is offered under a name; `ltcore.discovery.catalogue` finds it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Offer:
    """A method that some installed distribution offers.

    Attributes:
        name: what a recipe writes after ``use:``.
        value: ``package.module:Class``.
        distribution: name of the distribution.
        version: its version.
    """

    name: str
    value: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return f"method '{self.name}' ({self.distribution} {self.version})"
