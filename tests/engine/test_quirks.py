"""What a model refuses is left out, once a request without it was accepted."""

from collections.abc import Callable
from typing import Any

import pytest

from devtools.upstream import behaviours as do
from devtools.upstream.control import Upstream
from holysheep import BadRequest, Client, config
from holysheep.errors import HolySheepError, RateLimited, ServerError, UnknownModel
from holysheep.quirks import Quirks, refused_parameters
from holysheep.settings import Settings
from holysheep.transport import ChatTransport
from holysheep.types import ChatRequest, Completed
from tests.fakes import KEY, FakeClock, ScriptedGateway, a_call, good_answer

BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
NO_LIMIT = "Unsupported parameter: 'max_tokens' is not supported. Use 'max_completion_tokens'."
NO_TEMPERATURE = "`temperature` is deprecated for this model."
ONLY_DEFAULT = (
    "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1)"
    " value is supported."
)
UNKNOWN_TOPK = (
    "Unrecognized request argument: topk. Known: model, messages, max_tokens, temperature, top_p,"
    " stop"
)

type Refuse = Callable[[dict[str, Any]], tuple[int, str, str | None] | None]
"""The status, message and ``param`` with which a body is refused, ``None`` if it is accepted."""


def client_of(upstream: Upstream) -> Client:
    return Client("test-key-" + "q" * 20, base_url=upstream.url, requests_per_minute=0)


class Model:
    """A model that refuses some requests, and a transport that knows nothing of it yet."""

    def __init__(self, refuse: Refuse | None = None) -> None:
        self.refuse = refuse or (lambda _: None)
        self.clock = FakeClock()
        self.gateway = ScriptedGateway(self.clock, self._respond)
        self._transport = ChatTransport(
            Settings(KEY),
            self.gateway,  # type: ignore[arg-type]
            Quirks(self.clock),
            self.clock,
        )

    def ask(self, *, stream: bool = False, **body: Any) -> tuple[str, ...]:
        """What was left out so that the request was accepted."""
        request = {"messages": [], "temperature": 0.7, "top_p": 0.95, "max_tokens": 9, **body}
        request = {name: value for name, value in request.items() if value is not None}
        call = a_call(self.clock, ChatRequest({"model": "m-1", **request}), stream=stream)
        (last,) = [event for event in self._transport(call) if isinstance(event, Completed)]
        return last.completion.left_out

    def requests_for(self, **body: Any) -> int:
        """How many requests it takes until one is accepted."""
        before = len(self.gateway.bodies)
        self.ask(**body)
        return len(self.gateway.bodies) - before

    def error(self, **body: Any) -> HolySheepError:
        """The error of a call that fails."""
        with pytest.raises(HolySheepError) as caught:
            self.ask(**body)
        return caught.value

    def _respond(self, body: dict[str, Any], _: int) -> tuple[float, int, dict[str, str], Any]:
        refusal = self.refuse(body)
        if refusal is None:
            return good_answer(body, latency_s=0.0)
        status, message, param = refusal
        return 0.0, status, {}, {"error": {"message": message, "param": param}}


def refusing(**told: str) -> Refuse:
    """Refuses each of the parameters with a message of its own, one at a time."""

    def refuse(body: dict[str, Any]) -> tuple[int, str, str | None] | None:
        return next(((400, told[name], name) for name in told if name in body), None)

    return refuse


class TestThroughTheClient:
    def test_a_refused_parameter_is_left_out_and_the_model_remembered(
        self, upstream: Upstream
    ) -> None:
        upstream.script(do.status(400, message=BOTH))
        client = client_of(upstream)
        first = client.chat("one", model="claude-sonnet-4.5")
        second = client.chat("two", model="claude-sonnet-4.5")
        assert (first.meta.attempts, second.meta.attempts) == (2, 1)
        assert first.meta.left_out == second.meta.left_out == ("top_p",)
        bodies = [request["json"] for request in upstream.requests()]
        assert ["top_p" in body for body in bodies] == [True, False, False]
        assert all("temperature" in body for body in bodies)

    def test_another_model_of_the_same_gateway_gets_all_parameters(
        self, upstream: Upstream
    ) -> None:
        upstream.script(do.status(400, message=BOTH), model="a")
        client = client_of(upstream)
        client.chat("one", model="a")
        assert client.chat("one", model="b").meta.left_out == ()

    def test_the_token_limit_goes_under_its_other_name(self, upstream: Upstream) -> None:
        upstream.script(do.status(400, message=NO_LIMIT, param="max_tokens"))
        client_of(upstream).chat("one", max_tokens=77)
        sent = upstream.requests()[-1]["json"]
        assert sent["max_completion_tokens"] == 77
        assert "max_tokens" not in sent

    def test_stream_options_are_left_out_of_a_stream(self, upstream: Upstream) -> None:
        upstream.script(do.status(400, message="Unknown field: stream_options"))
        answer = client_of(upstream).stream("one")
        assert "".join(delta.text for delta in answer)
        assert "stream_options" not in upstream.requests()[-1]["json"]

    def test_what_only_the_author_sends_is_never_left_out(self, upstream: Upstream) -> None:
        upstream.default(
            do.status(400, message="seed is not supported by this model", param="seed")
        )
        with pytest.raises(BadRequest):
            client_of(upstream).chat("one", seed=5)
        assert upstream.stats().calls == 1

    def test_a_refusal_that_goes_on_ends(self, upstream: Upstream) -> None:
        upstream.default(do.status(400, message="temperature, top_p, max_tokens: not supported"))
        with pytest.raises(BadRequest):
            client_of(upstream).chat("one")
        assert upstream.stats().calls == 4

    @pytest.mark.parametrize("param", ["topk", None])
    def test_the_bad_request_of_one_changes_nothing_for_others(
        self, upstream: Upstream, param: str | None
    ) -> None:
        client = client_of(upstream)
        upstream.script(*[do.status(400, message=UNKNOWN_TOPK, param=param)] * 6)
        for number in range(6):
            with pytest.raises(BadRequest, match="topk"):
                client.chat(f"number {number}", extra_body={"topk": 5})
        assert upstream.stats().calls == 6
        assert client.chat("another").meta.left_out == ()
        sent = upstream.requests()[-1]["json"]
        assert {"temperature", "top_p", "max_tokens"} <= sent.keys()


class TestProof:
    """Only what an accepted request went without is remembered."""

    def test_all_that_had_to_be_left_out_is_remembered(self) -> None:
        model = Model(refusing(max_tokens=NO_LIMIT, temperature=ONLY_DEFAULT, top_p=NO_TEMPERATURE))
        assert model.ask() == ("max_tokens", "temperature", "top_p")
        assert model.requests_for() == 1
        assert len(model.gateway.bodies) == 5

    @pytest.mark.parametrize("status", [400, 405, 413, 422])
    def test_another_refusal_without_it_is_the_author_s_error_as_it_was(self, status: int) -> None:
        model = Model(
            lambda body: (
                (400, NO_LIMIT, "max_tokens") if "max_tokens" in body else (status, "Other.", None)
            )
        )
        error = model.error(max_tokens=100_000)
        assert "max_tokens" in error.message
        assert (error.status, len(model.gateway.bodies)) == (400, 2)
        model.refuse = lambda _: None
        assert model.ask() == ()

    @pytest.mark.parametrize(
        ("status", "kind"), [(404, UnknownModel), (429, RateLimited), (503, ServerError)]
    )
    def test_a_failure_for_another_reason_is_told_as_it_is_and_proves_nothing(
        self, status: int, kind: type[HolySheepError]
    ) -> None:
        model = Model(
            lambda body: (
                (400, BOTH, None)
                if {"top_p", "temperature"} <= body.keys()
                else (status, "Other.", None)
            )
        )
        assert type(model.error()) is kind
        model.refuse = lambda _: None
        assert model.ask() == ()

    def test_what_was_left_out_without_effect_is_not_remembered(self) -> None:
        """One message about three parameters, of which the last was the reason."""
        told = (400, "top_p, temperature, max_tokens: not supported", None)
        model = Model(lambda body: told if "max_tokens" in body else None)
        assert model.ask() == ("top_p", "temperature", "max_tokens")
        assert model.ask() == ("max_tokens",)

    def test_nothing_is_left_out_twice(self) -> None:
        model = Model(lambda _: (400, BOTH, None))
        model.error()
        sent = [frozenset(body) for body in model.gateway.bodies]
        assert len(sent) == len(set(sent)) == 3

    def test_what_was_learned_is_forgotten_in_time(self) -> None:
        model = Model(refusing(temperature=ONLY_DEFAULT))
        assert model.requests_for() == 2
        model.clock.sleep(config.QUIRK_TTL_S - 1)
        assert model.requests_for() == 1
        model.clock.sleep(2)
        model.refuse = lambda _: None
        assert model.ask() == ()

    def test_what_was_not_in_the_request_is_not_said_to_be_left_out(self) -> None:
        model = Model(refusing(temperature=ONLY_DEFAULT))
        assert model.ask() == ("temperature",)
        assert model.ask(temperature=None) == ()

    def test_stream_options_cannot_be_left_out_where_nothing_is_streamed(self) -> None:
        model = Model(lambda _: (400, "Unknown field: stream_options", None))
        model.error()
        assert len(model.gateway.bodies) == 1

    def test_a_token_limit_under_its_other_name_is_kept(self) -> None:
        model = Model(refusing(max_tokens=NO_LIMIT))
        model.ask(max_completion_tokens=5)
        assert model.gateway.bodies[-1]["max_completion_tokens"] == 5


REFUSALS = [
    (ONLY_DEFAULT, "temperature", ("temperature",)),
    (ONLY_DEFAULT, None, ("temperature",)),
    (NO_LIMIT, "max_tokens", ("max_tokens",)),
    (BOTH, None, ("top_p", "temperature")),
    (NO_TEMPERATURE, None, ("temperature",)),
    ("Unrecognized request argument supplied: stream_options", None, ("stream_options",)),
    ("Extra inputs are not permitted", "stream_options.include_usage", ("stream_options",)),
    ("stream_options: Extra inputs are not permitted", None, ("stream_options",)),
    (
        "Extra inputs are not permitted, field: 'temperature', value: 0.7",
        None,
        ("temperature",),
    ),
    ("property 'stream_options' is unsupported", None, ("stream_options",)),
    (
        'Invalid JSON payload received. Unknown name "stream_options": Cannot find field.',
        None,
        ("stream_options",),
    ),
    (
        "gpt-5 models don't support temperature=0.7. Only temperature=1 is supported.",
        None,
        ("temperature",),
    ),
    ("invalid temperature: only 1 is allowed for this model", None, ("temperature",)),
    ("temperature is not supported by claude-opus-4-6 or gpt-5.1", None, ("temperature",)),
    ("The following are not supported: temperature, top_p", None, ("top_p", "temperature")),
]
OTHERS = [
    (UNKNOWN_TOPK, None),
    (UNKNOWN_TOPK, "topk"),
    ("unknown field `topk`, expected one of `model`, `temperature`, `top_p`", None),
    ("topk is not supported. Supported parameters: temperature, top_p.", None),
    ("topk is not supported, use temperature instead", None),
    ("topk (allowed: temperature, max_tokens) is unknown", None),
    (BOTH, "seed"),
    ("temperature 1.8 is not supported, use 0 to 1", None),
    ("temperature 1.8 is not supported, use 0 to 1", "temperature"),
    ("temperature=1.8 is not supported", None),
    ("A temperature value of 1.8 is not supported.", None),
    ("temperature is not supported outside [0, 1]", "temperature"),
    ("Unsupported value: 'temperature' does not support 1.8 with this model.", "temperature"),
    ("Unsupported temperature. It must be between 0 and 1.", None),
    ("max_tokens 100000 is not allowed, at most 8192", None),
    ("max_tokens: 100000 > 8192, which is the maximum allowed number of output tokens", None),
    ("max_tokens is too large: 100000. This model supports at most 16384 tokens", "max_tokens"),
    ("max_tokens is not allowed to exceed 8192", "max_tokens"),
    ("temperature must be at most 1", None),
    ("the prompt is not supported", None),
    ("stop_top_p_words is not supported", None),
    ("The temperature of the oven. That is not supported.", None),
    ("", "temperature"),
]


class TestWording:
    @pytest.mark.parametrize(("told", "param", "names"), REFUSALS)
    def test_a_parameter_that_is_not_taken(
        self, told: str, param: str | None, names: tuple[str, ...]
    ) -> None:
        assert refused_parameters(BadRequest("told", detail=told, param=param)) == names

    @pytest.mark.parametrize(("told", "param"), OTHERS)
    def test_other_refusals_are_about_none(self, told: str, param: str | None) -> None:
        assert refused_parameters(BadRequest("told", detail=told, param=param)) == ()

    def test_an_unknown_model_refuses_no_parameter(self) -> None:
        error = UnknownModel("told", detail="model not supported at this temperature")
        assert refused_parameters(error) == ()

    @pytest.mark.parametrize(("told", "param"), OTHERS)
    def test_a_value_that_is_refused_is_refused_once_and_teaches_nothing(
        self, told: str, param: str | None
    ) -> None:
        model = Model(lambda _: (400, told, param))
        model.error()
        assert len(model.gateway.bodies) == 1
        model.refuse = lambda _: None
        assert model.ask() == ()
