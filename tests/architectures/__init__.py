"""Small models of the true architectures and SAEs in the true file formats, laid out as the hub cache lays them out.

``Hub(folder).need("gemma-2-2b")`` writes what a download of that model and its SAEs would leave behind, in small; ``redirected(hub)``
makes this process look there, ``hub.environment()`` another one. Everything then loads by its public name, offline, through the code
that a user's run takes.
"""

from tests.architectures.hub import Hub, redirected
from tests.architectures.shapes import SHAPES, Shape

__all__ = ["SHAPES", "Hub", "Shape", "redirected"]
