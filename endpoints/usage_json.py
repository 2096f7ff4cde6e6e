"""The usage of the workspace as JSON."""

from endpoints import _adapter
from holysheep.errors import InputError
from holysheep.gateway import ApiError, encoded
from holysheep.params import UsageParams
from holysheep.reading import parsed
from holysheep.usage import read_usage
from host import process


class UsageJson(_adapter.Site):
    """What the requests of a period came to."""

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """As the dashboard reads it."""
        try:
            params = parsed(UsageParams, {"period": visitor.request.args.get("period", "today")})
        except InputError as error:
            raise ApiError(400, error.message, param="period") from None
        with process.invocation(visitor.session, "usage") as invocation:
            usage = read_usage(
                invocation.ledger,
                params.period,
                process.clock(),
                budget_of=visitor.settings,
                give_way=process.give_way,
            )
            yield _adapter.Head()
            yield encoded(usage.to_json())
