"""The models that the gateway offers, in OpenAI's form."""

from endpoints import _adapter
from holysheep.credentials import list_models
from holysheep.errors import SettingsError
from holysheep.gateway import ApiError, encoded, models_list
from host import process


class Models(_adapter.Site):
    """The list of models."""

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """Ask the gateway for them."""
        engine = _adapter.needed_engine(visitor)
        try:
            names = list_models(engine, clock=process.clock())
        except SettingsError:
            # Some gateways have no such list, and answer chats all the same.
            raise ApiError(404, "The gateway has no list of models.", code="not_found") from None
        yield _adapter.Head()
        yield encoded(models_list(names))
