"""The models that the gateway offers, in OpenAI's form."""

from endpoints import _adapter
from holysheep.credentials import list_models
from holysheep.gateway import encoded, models_list
from host import process


class Models(_adapter.Site):
    """The list of models."""

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """Ask the gateway for them."""
        engine = _adapter.needed_engine(visitor)
        names = list_models(engine, clock=process.clock())
        yield _adapter.Head()
        yield encoded(models_list(names))
