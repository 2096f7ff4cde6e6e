"""The stylesheet of the dashboard."""

from endpoints import _adapter
from holysheep.dashboard import stylesheet


class DashboardStyle(_adapter.Site):
    """The stylesheet of the dashboard."""

    is_public = True

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """The whole stylesheet."""
        del visitor
        yield _adapter.Head("text/css; charset=utf-8")
        yield stylesheet()
