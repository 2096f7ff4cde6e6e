"""Credentials: what is accepted, what is refused with a sentence, and that no key shows."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holysheep import config
from holysheep.errors import SettingsError
from holysheep.settings import FIELDS, Settings, parse_settings
from holysheep.shared.address import parse_redis_url
from tests.fakes import KEY

OTHER_KEY = "test-key-" + "b" * 20
odd_texts = st.text(max_size=40) | st.text(
    st.sampled_from("0123456789.eE+-_ :/?#@[]{}nNaif٣"), max_size=20
)


def parse(**fields: Any) -> Settings:
    return parse_settings({"api_key": KEY, **fields})


def refusal(**fields: Any) -> str:
    with pytest.raises(SettingsError) as raised:
        parse(**fields)
    return raised.value.message


def test_a_key_alone_is_a_credential_with_the_documented_defaults() -> None:
    settings = parse()
    assert settings.base_url == "https://api.holysheep.ai/v1"
    assert settings.auth_header == "bearer"
    assert settings.default_model == "deepseek-v3.2"
    assert settings.requests_per_minute == 60
    assert settings.tokens_per_minute == 0
    assert settings.max_concurrency == 20
    assert settings.daily_budget_usd is settings.monthly_budget_usd is None
    assert settings.price_overrides == {}
    assert settings.redis_url == ""


@pytest.mark.parametrize("empty", ["", "  ", None])
def test_an_empty_field_is_a_field_that_is_not_set(empty: str | None) -> None:
    assert parse(**{name: empty for name in FIELDS if name != "api_key"}) == parse()


def test_fields_of_others_are_ignored() -> None:
    assert parse(redis="redis://x", something="else") == parse()


# --- the key ------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["Bearer ", "bearer ", "BEARER   ", "  Bearer "])
def test_a_pasted_bearer_prefix_is_removed(prefix: str) -> None:
    assert parse(api_key=f"{prefix}{KEY} ").api_key == KEY


@pytest.mark.parametrize(
    "key",
    [
        "",
        "   ",
        "Bearer ",
        "short",
        "a" * 19,
        "a" * 10 + " " + "a" * 10,
        "a" * 10 + "\t" + "a" * 10,
        "a" * 10 + "\n" + "a" * 10,
        "a" * 20 + "é",
        "a" * 20 + "\u200b",
        "a" * 20 + "\x00",
        "a" * 20 + "\x7f",
    ],
    ids=repr,
)
def test_what_cannot_be_a_key_is_refused_without_repeating_it(key: str) -> None:
    message = refusal(api_key=key)
    assert message.startswith("api_key ")
    assert "aaaa" not in message


def test_no_spelling_of_a_credential_shows_its_key() -> None:
    settings = parse()
    for shown in (repr(settings), str(settings), f"{settings}", f"{settings!r:>10}"):
        assert KEY not in shown


@pytest.mark.parametrize(
    "field", [name for name in FIELDS if name not in ("api_key", "default_model")]
)
def test_a_key_in_the_wrong_field_is_not_repeated(field: str) -> None:
    pasted = "sk-" + "c3" * 8
    assert pasted not in refusal(**{field: pasted})


def test_credentials_differ_by_key_and_base_url_alone() -> None:
    one = parse()
    assert one.fingerprint == parse(requests_per_minute="5", auth_header="both").fingerprint
    assert one.fingerprint != parse(base_url="https://other.example/v1").fingerprint
    assert one.fingerprint != parse_settings({"api_key": OTHER_KEY}).fingerprint
    assert KEY not in one.fingerprint


# --- the base URL -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://host.example/v1", "https://host.example/v1"),
        ("https://host.example/v1/", "https://host.example/v1"),
        ("https://host.example/v1/chat/completions", "https://host.example/v1"),
        ("https://host.example/v1/chat/completions/", "https://host.example/v1"),
        ("http://localhost:8080", "http://localhost:8080"),
        ("http://[::1]:8080/v1", "http://[::1]:8080/v1"),
        ("HTTPS://Host.Example/v1", "https://host.example/v1"),
    ],
)
def test_a_base_url_is_brought_into_one_form(text: str, expected: str) -> None:
    assert parse(base_url=text).base_url == expected


@pytest.mark.parametrize(
    "text",
    [
        "host.example/v1",
        "ftp://host.example",
        "file:///v1",
        "https://",
        "https:///v1",
        "https://user:pass@host.example/v1",
        "https://host.example/v1?key=x",
        "https://host.example/v1?",
        "https://host.example/v1#",
        "https://host.example/v1#top",
        "https://host.example:99999/v1",
        "https://host.example:0/v1",
        "https://host.example:abc/v1",
        "https://[::1/v1",
        "https://a..b/v1",
        "https://.example/v1",
        "https://" + "a" * 64 + ".example/v1",
        "https://\ud800/v1",
        "https://host.example/v1\nx",
        "javascript:alert(1)",
        "x" * 70_000,
    ],
    ids=lambda text: repr(text[:30]),
)
def test_a_base_url_that_no_request_could_be_sent_to_is_refused(text: str) -> None:
    assert refusal(base_url=text).startswith("base_url ")


# --- numbers ------------------------------------------------------------------------------------

LIMITS = ["requests_per_minute", "tokens_per_minute"]
BUDGETS = ["daily_budget_usd", "monthly_budget_usd"]


@pytest.mark.parametrize("field", LIMITS)
@pytest.mark.parametrize(
    ("text", "expected"), [("0", 0), ("60", 60), (" 90.5 ", 90.5), ("1e3", 1000), (30, 30)]
)
def test_a_limit_is_a_number_of_at_least_nothing(field: str, text: Any, expected: float) -> None:
    assert getattr(parse(**{field: text}), field) == expected


@pytest.mark.parametrize("field", [*LIMITS, *BUDGETS, "max_concurrency"])
@pytest.mark.parametrize(
    "text",
    [
        "abc",
        "-1",
        "nan",
        "NaN",
        "sNaN",
        "inf",
        "-Infinity",
        "1e400",
        "1e999999999",
        "1,5",
        "60 rpm",
        "0x10",
        "1 000",
        True,
        [60],
        {"a": 1},
        float("nan"),
        float("inf"),
    ],
    ids=repr,
)
def test_a_number_that_is_none_or_unbounded_is_refused_by_name(field: str, text: Any) -> None:
    assert refusal(**{field: text}).startswith(f"{field} must be ")


@pytest.mark.parametrize("field", LIMITS)
def test_a_limit_that_is_not_nothing_never_turns_into_no_limit(field: str) -> None:
    try:
        settings = parse(**{field: "1e-400"})
    except SettingsError:
        return
    assert getattr(settings, field) > 0


@pytest.mark.parametrize("text", ["0", "-1", "1001", "1.5", "1e6", "0.9999"])
def test_the_concurrency_is_a_whole_number_in_its_range(text: str) -> None:
    assert refusal(max_concurrency=text).startswith("max_concurrency must be ")


@pytest.mark.parametrize(
    ("text", "expected"), [("1", 1), ("1000", 1000), ("20.0", 20), ("1e2", 100)]
)
def test_a_whole_number_may_be_spelt_in_several_ways(text: str, expected: int) -> None:
    assert parse(max_concurrency=text).max_concurrency == expected


@pytest.mark.parametrize("field", BUDGETS)
def test_a_budget_is_exact(field: str) -> None:
    assert getattr(parse(**{field: "0.1"}), field) == Decimal("0.1")


@pytest.mark.parametrize("field", BUDGETS)
@pytest.mark.parametrize("text", ["0", "0.00", "-0"])
def test_a_budget_of_nothing_is_refused(field: str, text: str) -> None:
    assert refusal(**{field: text}).startswith(field)


# --- the Redis ---------------------------------------------------------------------------------

PASSWORD = "the-password-of-the-redis"
REDIS_URLS = [
    f"redis://user:{PASSWORD}@host:6379/0",
    f"redis://:{PASSWORD}@host",
    f"rediss://:{PASSWORD}@host:6380/15?ssl_ca_certs=/path/ca.pem",
    f"redis+cluster://:{PASSWORD}@host:6379,host2",
    f"rediss+sentinel://:{PASSWORD}@host:26379,host2/mymaster/1",
    f"redis+sentinel://host/mymaster?sentinel_username=user&sentinel_password={PASSWORD}",
    f"rediss+sentinel://host/mymaster?sentinel_ssl=true&sentinel_password={PASSWORD}",
]


@pytest.mark.parametrize("url", ["redis://host", " redis://[::1]:6379/0 ", *REDIS_URLS])
def test_a_redis_url_is_kept_as_it_was_given(url: str) -> None:
    assert parse(redis_url=url).redis_url == url.strip()


def test_sentinels_are_asked_with_their_own_login_and_the_same_certificates() -> None:
    query = "sentinel_username=eve&sentinel_password=p%40ss&ssl_ca_certs=/path/ca.pem"
    url = f"rediss+sentinel://adam:{PASSWORD}@host/mymaster?{query}"
    plain, secure = parse_redis_url(url), parse_redis_url(f"{url}&sentinel_ssl=yes")
    servers = {"username": "adam", "password": PASSWORD, "ssl_ca_certs": "/path/ca.pem"}
    assert plain.options == secure.options == {**servers, "ssl": True, "db": 0}
    login = {"username": "eve", "password": "p@ss"}
    assert plain.sentinel_options == login
    assert secure.sentinel_options == {**login, "ssl": True, "ssl_ca_certs": "/path/ca.pem"}


@pytest.mark.parametrize("url", REDIS_URLS)
def test_no_spelling_of_a_credential_shows_the_password_of_its_redis(url: str) -> None:
    settings = parse(redis_url=url)
    for shown in (repr(settings), str(settings), f"{settings}", repr(parse_redis_url(url))):
        assert PASSWORD not in shown
        assert "redis://" not in shown


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        *(
            (
                url,
                "redis_url must begin with redis://, rediss:// (TLS), redis+cluster:// or"
                " redis+sentinel://.",
            )
            for url in (
                f"http://:{PASSWORD}@host",
                f"host:6379/{PASSWORD}",
                f"unix:///tmp/{PASSWORD}",
                f"redis+other://:{PASSWORD}@host",
                f"{PASSWORD}@host",
                PASSWORD,
            )
        ),
        *(
            (url, "redis_url must name one host, such as redis://host:6379/0.")
            for url in (
                "redis://",
                f"redis://:{PASSWORD}@",
                f"redis://:{PASSWORD}@/0",
                f"redis://:{PASSWORD}@host,host2",
                f"redis+cluster://:{PASSWORD}@host,",
            )
        ),
        *(
            (url, "redis_url is no valid URL, such as redis://host:6379/0.")
            for url in (
                f"redis://:{PASSWORD}@host:port",
                f"redis://:{PASSWORD}@host:99999",
                f"redis://:{PASSWORD}@[::1",
                f"redis://host:{PASSWORD}",
            )
        ),
        (
            f"redis+sentinel://:{PASSWORD}@host:26379",
            "redis_url must name the service of the master, such as"
            " redis+sentinel://host:26379/mymaster/0.",
        ),
        *(
            (url, "redis_url has a database that is no number, or not 0 in a cluster.")
            for url in (
                f"redis://:{PASSWORD}@host/one",
                f"redis://:{PASSWORD}@host/-1",
                f"redis://:{PASSWORD}@host/0/1",
                f"redis+cluster://:{PASSWORD}@host/1",
                f"redis+sentinel://:{PASSWORD}@host/mymaster/x",
            )
        ),
        (
            f"redis://:{PASSWORD}@host?ssl_ca_certs=/path/ca.pem",
            "redis_url has options for TLS, so it must begin with rediss.",
        ),
        (
            f"redis+sentinel://host/mymaster?sentinel_ssl=true&sentinel_password={PASSWORD}",
            "redis_url has options for TLS, so it must begin with rediss.",
        ),
        (
            f"redis://host?sentinel_password={PASSWORD}",
            "redis_url has an option that cannot be set: sentinel_password. Known are"
            " ssl_ca_certs, ssl_ca_path, ssl_cert_reqs, ssl_certfile, ssl_check_hostname,"
            " ssl_keyfile.",
        ),
        *(
            (
                url,
                "redis_url has an option that cannot be set: socket_timeout. Known are"
                " ssl_ca_certs, ssl_ca_path, ssl_cert_reqs, ssl_certfile, ssl_check_hostname,"
                " ssl_keyfile.",
            )
            for url in (
                f"redis://:{PASSWORD}@host?socket_timeout=9",
                f"rediss://:{PASSWORD}@host?socket_timeout=9&ssl_ca_certs=x",
            )
        ),
    ],
)
def test_a_redis_url_that_is_none_is_refused_without_repeating_it(url: str, sentence: str) -> None:
    assert refusal(redis_url=url) == sentence


# --- the rest -----------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["bearer", "x-api-key", "both"])
def test_the_ways_of_sending_the_key(header: str) -> None:
    assert parse(auth_header=header).auth_header == header


@pytest.mark.parametrize("header", ["Basic", "none", "bearer,x-api-key", "x" * 500])
def test_another_way_of_sending_the_key_is_refused(header: str) -> None:
    message = refusal(auth_header=header)
    assert "bearer, x-api-key or both" in message
    assert len(message) < 200


@pytest.mark.parametrize("model", ["m" * 200, "org/Model-1.0:free", "模型", " gpt-4.1 "])
def test_a_default_model_is_any_id(model: str) -> None:
    assert parse(default_model=model).default_model == model.strip()


@pytest.mark.parametrize(
    "model", ["m" * 201, "a\nb", "a\x1b[31m", "a\x00", "a\u200bb"], ids=lambda m: repr(m[:9])
)
def test_a_default_model_that_no_call_could_ask_for_is_refused(model: str) -> None:
    assert refusal(default_model=model) == (
        "default_model must be a model id of at most 200 printable characters."
    )


def test_price_overrides_are_read() -> None:
    settings = parse(price_overrides="m: {input: 1, output: 2}")
    assert settings.price_overrides["m"].output == 2


def test_the_same_texts_are_the_same_settings() -> None:
    assert parse(requests_per_minute="7") == parse(requests_per_minute="7")
    assert parse(requests_per_minute="7") != parse(requests_per_minute="8")


@given(field=st.sampled_from(FIELDS), text=odd_texts)
def test_no_text_in_any_field_does_anything_but_work_or_be_refused_in_one_line(
    field: str, text: str
) -> None:
    try:
        settings = parse(**{field: text})
    except SettingsError as error:
        told = error.message
    else:
        told = repr(settings)
        assert 1 <= settings.max_concurrency <= config.MAX_MAX_CONCURRENCY
    assert "\n" not in told
    assert KEY not in told


@given(
    fields=st.dictionaries(
        st.sampled_from(FIELDS),
        st.none() | st.booleans() | st.floats() | st.integers() | st.lists(st.integers()),
    )
)
def test_no_value_of_any_type_crashes_the_parser(fields: dict[str, Any]) -> None:
    try:
        parse_settings(fields)
    except SettingsError as error:
        told = error.message
    else:
        told = ""
    assert "\n" not in told
