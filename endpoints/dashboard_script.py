"""The script of the dashboard."""

from endpoints import _adapter
from holysheep.dashboard import script


class DashboardScript(_adapter.Site):
    """The script of the dashboard."""

    is_public = True

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """The whole script."""
        del visitor
        yield _adapter.Head("text/javascript; charset=utf-8")
        yield script()
