"""A method that is offered under a name; `ltcore.discovery.catalogue` finds it."""

from dataclasses import dataclass

#: The version of what is no distribution, but a file that a recipe names (`ltcore.discovery.unpackaged`).
UNPACKAGED = "unpackaged"


@dataclass(frozen=True)
class Offer:
    """A method that some installed distribution offers, or a file.

    Attributes:
        name: what a recipe writes after ``use:``.
        value: ``package.module:Class``.
        distribution: name of the distribution, or of the file.
        version: its version, or `UNPACKAGED`.
    """

    name: str
    value: str
    distribution: str
    version: str

    @property
    def module(self) -> str:
        """``package.module``."""
        return self.value.partition(":")[0]

    @property
    def is_packaged(self) -> bool:
        """Whether a distribution offers it, and no file."""
        return self.version != UNPACKAGED

    def __str__(self) -> str:
        return f"method '{self.name}' ({self.distribution} {self.version})"
