"""What is particular to buckets: which failure becomes which error, lost answers, and that secrets stay secret."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest

from rayflow.checkpoint import bucket
from rayflow.checkpoint.bucket import BucketStore
from rayflow.errors import AlreadyExists, InvalidInput, NotFound, StoreUnavailable, StoreUnsuitable
from tests.s3_service import BUCKET, serving

# Keeps the client from asking a machine's metadata service for credentials.
WITHOUT_SIGNATURE = '{"client_email": "", "private_key": "", "private_key_id": "", "disable_oauth": true}'
SECRET = "do-not-tell-anyone"


def answering(status: str, body: bytes = b"") -> Callable[..., Any]:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [body]

    return application


def test_a_missing_bucket_is_unsuitable_and_named(s3_environment: str) -> None:
    store = BucketStore("s3", "no-such-bucket-here")
    for operation in (
        lambda: store.create("a", b"x"),
        lambda: store.get("a"),
        lambda: list(store.list("")),
        lambda: store.delete(["a"]),
    ):
        with pytest.raises(StoreUnsuitable, match=r"s3://no-such-bucket-here.*no such bucket"):
            operation()


def test_a_refused_connection_is_worth_another_try(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{unused.getsockname()[1]}")
        monkeypatch.setattr(bucket, "MAX_RETRIES", 1)
        with pytest.raises(StoreUnavailable, match="cannot create a"):
            BucketStore("s3", BUCKET).create("a", b"x")


@pytest.mark.long
def test_a_server_that_does_not_answer_in_time_is_worth_another_try(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(bucket, "MAX_RETRIES", 0)
        monkeypatch.setattr(bucket, "REQUEST_TIMEOUT_S", 0.2)
        with pytest.raises(StoreUnavailable, match="cannot create a"):
            BucketStore("s3", BUCKET).create("a", b"x")


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        ("403 Forbidden", "AccessDenied", StoreUnsuitable),
        ("401 Unauthorized", "Unauthorized", StoreUnsuitable),
        ("400 Bad Request", "AuthorizationHeaderMalformed", StoreUnsuitable),
        ("501 Not Implemented", "NotImplemented", StoreUnsuitable),
        ("500 Internal Server Error", "InternalError", StoreUnavailable),
        ("503 Slow Down", "SlowDown", StoreUnavailable),
        ("429 Too Many Requests", "TooManyRequests", StoreUnavailable),
        ("404 Not Found", "NoSuchKey", NotFound),
        ("404 Not Found", "NoSuchBucket", StoreUnsuitable),
    ],
)
def test_each_answer_becomes_the_error_that_says_what_to_do_and_tells_no_secret(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, status: str, code: str, expected: type[Exception]
) -> None:
    body = f"<Error><Code>{code}</Code><StringToSign>{SECRET}</StringToSign></Error>".encode()
    monkeypatch.setattr(bucket, "MAX_RETRIES", 0)
    with serving(answering(status, body)) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = BucketStore("s3", BUCKET, "team")
        with pytest.raises(expected) as caught:
            store.get("a")
    assert "cannot read a in s3://rayflow-test/team" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert SECRET not in repr(store) + store.url


def test_a_repeated_request_after_a_lost_answer_finds_its_own_object(
    s3_application: Callable[..., Any],
    s3_store: BucketStore,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: list[str] = []

    def losing_the_first_answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        if environ["REQUEST_METHOD"] == "PUT" and not lost:
            lost.append(environ["PATH_INFO"])
            list(s3_application(environ, lambda *_: None))
            start_response("503 Slow Down", [("Content-Length", "0")])
            return []
        return s3_application(environ, start_response)

    with serving(losing_the_first_answer) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = BucketStore("s3", BUCKET, s3_store.url.partition(f"{BUCKET}/")[2])
        with pytest.raises(AlreadyExists):
            store.create("log/1", b"mine")
        assert store.get("log/1") == b"mine"
    assert lost


@pytest.mark.parametrize("status", ["409 Conflict", "412 Precondition Failed"])
def test_a_refused_create_without_an_object_is_not_called_already_there(
    s3_environment: str, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    def colliding(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        found = status if environ["REQUEST_METHOD"] == "PUT" else "404 Not Found"
        return answering(found)(environ, start_response)

    monkeypatch.setattr(bucket, "MAX_RETRIES", 0)
    with serving(colliding) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StoreUnavailable):
            BucketStore("s3", BUCKET).create("a", b"x")


def test_objects_of_others_in_the_bucket_are_not_seen(s3_store: BucketStore) -> None:
    name = s3_store.url.rpartition("/")[2]
    outside = BucketStore("s3", BUCKET)
    outside.create(f"team/{name}-other/a", b"x")
    outside.create(f"team/{name}0", b"x")
    s3_store.create("a", b"x")
    assert [found.key for found in s3_store.list("")] == ["a"]
    assert f"team/{name}/a" in [found.key for found in outside.list("team/")]


def test_a_service_that_lists_out_of_order_is_refused(s3_environment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = "<Contents><Key>%s</Key><LastModified>2024-01-01T00:00:00.000Z</LastModified><Size>1</Size></Contents>"
    body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entry % 'b'}{entry % 'a'}</ListBucketResult>"
    with serving(answering("200 OK", body.encode())) as endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StoreUnsuitable, match="order of their keys"):
            list(BucketStore("s3", BUCKET).list(""))


@pytest.mark.parametrize(("scheme", "name"), [("ftp", "bucket"), ("s3", ""), ("s3", "a/b"), ("s3", "key:secret@bucket")])
def test_a_bucket_that_cannot_be_is_refused_before_anything_is_sent(scheme: str, name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        BucketStore(scheme, name)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "settings", "condition", "taken"),
    [
        ("s3", {"AWS_ENDPOINT_URL": ""}, ("HTTP_IF_NONE_MATCH", "*"), "412 Precondition Failed"),
        (
            "gs",
            {"GOOGLE_BASE_URL": "", "GOOGLE_SERVICE_ACCOUNT_KEY": WITHOUT_SIGNATURE},
            ("HTTP_X_GOOG_IF_GENERATION_MATCH", "0"),
            "412 Precondition Failed",
        ),
        (
            "az",
            {
                "AZURE_STORAGE_ENDPOINT": "",
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
                "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0",
            },
            ("HTTP_IF_NONE_MATCH", "*"),
            "409 Conflict",
        ),
    ],
)
def test_a_create_carries_the_condition_of_each_cloud(
    scheme: str,
    settings: dict[str, str],
    condition: tuple[str, str],
    taken: str,
    s3_environment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[str, str | None]] = []
    answers = {"PUT": taken, "HEAD": "200 OK"}

    def service(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        seen.append((environ["REQUEST_METHOD"], environ.get(condition[0])))
        headers = [("Content-Length", "0"), ("ETag", '"1"'), ("Last-Modified", "Mon, 01 Jan 2024 00:00:00 GMT")]
        start_response(answers[environ["REQUEST_METHOD"]], headers)
        return []

    with serving(service) as endpoint:
        for name, value in settings.items():
            monkeypatch.setenv(name, value or endpoint)
        store = BucketStore(scheme, "some-bucket", "prefix")
        assert store.url == f"{scheme}://some-bucket/prefix"
        with pytest.raises(AlreadyExists):
            store.create("a", b"x")
    assert seen == [("PUT", condition[1]), ("HEAD", None)]
