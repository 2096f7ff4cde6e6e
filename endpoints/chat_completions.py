"""OpenAI's chat completions, with everything that the engine does for a call."""

from endpoints import _adapter
from holysheep import config
from holysheep.gateway import Reply, encoded, read_request
from holysheep.pacing import paced_bytes
from host import process

EVENTS = "text/event-stream; charset=utf-8"


class ChatCompletions(_adapter.Site):
    """One chat completion, streamed or not."""

    def answer(self, visitor: _adapter.Visitor) -> _adapter.Answer:
        """Ask, and hand the answer on."""
        started_s = process.clock().monotonic()
        engine = _adapter.needed_engine(visitor)
        body = visitor.request.get_data()
        wanted = read_request(body, visitor.headers, engine.settings.default_model)
        with process.invocation(visitor.session, "gateway") as invocation:
            answer = engine.ask(
                wanted.request,
                wanted.policy,
                timeout_s=config.GATEWAY_TIMEOUT_S,
                queue_s=config.GATEWAY_QUEUE_S,
                stream=wanted.stream,
                started_s=started_s,
                invocation=invocation,
            )
            reply = Reply(wanted, answer, created_s=process.clock().wall())
            reply.begin()
            headers = {"x-request-id": reply.id, **reply.headers}
            if wanted.stream:
                yield _adapter.Head(EVENTS, headers=headers, streams=True)
                # Dify keeps 128 pieces for a client that reads slowly, and drops what follows.
                yield from paced_bytes(reply.chunks(), clock=process.clock(), spawn=process.spawn)
            else:
                yield _adapter.Head(headers=headers)
                yield encoded(reply.completion())
