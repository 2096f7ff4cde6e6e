"""Metrics for Prometheus."""

from endpoints import _adapter
from holysheep.budget import Limits
from holysheep.ports import utc_day
from host import process


class Metrics(_adapter.Site):
    """The usage of today and the state of this process."""

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """In the text format."""
        # Takes a while to load, and few have it scraped.
        from holysheep import metrics  # noqa: PLC0415

        engine = visitor.engine
        with process.invocation(visitor.session, "metrics") as invocation:
            ledger = invocation.ledger
            today = utc_day(process.clock())
            past = ledger.past([today], only_stored=True)
            limits = engine.limits if engine else Limits()
            periods = ()
            if engine and limits:
                ledger.refresh(engine.settings.fingerprint, limits)
                periods = ledger.periods(engine.settings.fingerprint, limits)
            is_stored = not (ledger.problem or past.missing)
            text = metrics.exposition(past.days[today], engine, periods, is_stored=is_stored)
            yield _adapter.Head(metrics.CONTENT_TYPE)
            yield text
