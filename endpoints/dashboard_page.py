"""The page of the dashboard; it holds no data."""

from endpoints import _adapter
from holysheep.dashboard import page


class DashboardPage(_adapter.Site):
    """The page of the dashboard; it holds no data."""

    is_public = True

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """The whole page."""
        del visitor
        yield _adapter.Head("text/html; charset=utf-8")
        yield page().encode()
