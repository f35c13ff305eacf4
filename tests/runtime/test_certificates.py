"""Where Ray encrypts what it sends, a client's connection to a host does so too, with Ray's certificates and with no others."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rayflow.runtime import channel
from rayflow.runtime.certificates import AUTHORITY, CERTIFICATE, KEY
from rayflow.runtime.channel import Address, Listener, reach
from tests.runtime.handles import Handle

LOOPBACK = "127.0.0.1"
AT_LOOPBACK = x509.IPAddress(ipaddress.ip_address(LOOPBACK))


class Authority:
    """Signs certificates. ``files`` are settings of Ray that name them."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self._count = 0
        self.file = self._write(self._signed(self._name, self._key, None).public_bytes(serialization.Encoding.PEM))

    def files(self, named: x509.GeneralName | None = AT_LOOPBACK, *, trusted: Authority | None = None) -> dict[str, str]:
        """A new certificate for that name; ``trusted`` is the authority of others that is believed, or this one."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, LOOPBACK if named is None else "node")])
        pem = serialization.Encoding.PEM
        return {
            "RAY_USE_TLS": "1",
            CERTIFICATE: self._write(self._signed(subject, key, named).public_bytes(pem)),
            KEY: self._write(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())),
            AUTHORITY: (trusted or self).file,
        }

    def _signed(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, named: x509.GeneralName | None) -> x509.Certificate:
        now = datetime.now(UTC)
        made = x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        made = made.add_extension(x509.BasicConstraints(ca=subject == self._name, path_length=None), critical=True)
        if named is not None:
            made = made.add_extension(x509.SubjectAlternativeName([named]), critical=False)
        return made.sign(self._key, hashes.SHA256())

    def _write(self, data: bytes) -> str:
        self._count += 1
        file = self._folder / f"{self._name.rfc4514_string()}-{self._count}.pem"
        file.write_bytes(data)
        return str(file)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "theirs")


class Host:
    """One that listens with these settings. ``calls`` came over connections."""

    def __init__(self, settings: dict[str, str]) -> None:
        self._settings = settings
        self.calls: list[bytes] = []
        self.address: Address

    async def __aenter__(self) -> Host:
        self._listener = Listener(self._note)
        with pytest.MonkeyPatch.context() as patch:
            told(patch, self._settings)
            address = await self._listener.open(LOOPBACK)
        assert address is not None
        self.address = address
        return self

    async def __aexit__(self, *error: object) -> None:
        self._listener.close()

    async def _note(self, data: bytes) -> bytes:
        self.calls.append(data)
        return data

    async def calls_through_ray(self, settings: dict[str, str], at: Address | None = None) -> int:
        """Of one call by a client with these settings: 0 or 1."""
        handle = actor_at(at or self.address)
        with pytest.MonkeyPatch.context() as patch:
            told(patch, settings)
            route = await reach(handle)
            assert await route.call(b"what is said") == b"what is said"
            route.close()
        return handle.called_through_ray


def actor_at(address: Address | None) -> Handle:
    async def tell() -> Address | None:
        return address

    async def echo(data: bytes) -> bytes:
        return data

    return Handle(echo, tell)


def told(patch: pytest.MonkeyPatch, settings: dict[str, str]) -> None:
    for name in ("RAY_USE_TLS", CERTIFICATE, KEY, AUTHORITY):
        patch.delenv(name, raising=False)
    for name, value in settings.items():
        patch.setenv(name, value)


@pytest.mark.parametrize("named", [AT_LOOPBACK, x509.DNSName(LOOPBACK), None], ids=["address", "name", "subject"])
def test_with_certificates_of_one_authority_calls_go_over_a_connection_that_nobody_can_read(
    ours: Authority, named: x509.GeneralName | None
) -> None:
    seen = bytearray()

    async def main() -> None:
        async with Host(ours.files(named)) as host:

            async def listen_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                inside = await asyncio.open_connection(host.address.host, host.address.port)
                await asyncio.gather(copy(reader, inside[1]), copy(inside[0], writer))
                left.set()

            async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with suppress(ConnectionError):
                    while data := await reader.read(2**16):
                        seen.extend(data)
                        writer.write(data)
                writer.close()

            left = asyncio.Event()
            server = await asyncio.start_server(listen_in, LOOPBACK, 0)
            outside = msgspec.structs.replace(host.address, port=server.sockets[0].getsockname()[1])
            assert await host.calls_through_ray(ours.files(), outside) == 0
            assert host.calls == [b"what is said"]
            await left.wait()
            server.close()
            assert seen
            for hidden in (b"what is said", host.address.asked, host.address.shown):
                assert hidden not in seen

    asyncio.run(main())


def test_a_client_with_a_certificate_of_another_authority_is_refused(
    ours: Authority, theirs: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Host(ours.files()) as host:
            assert await host.calls_through_ray(theirs.files(trusted=ours)) == 1
            assert not host.calls

    asyncio.run(main())
    assert "cannot connect to the shards" in caplog.text


@pytest.mark.parametrize("wrong", ["authority", "address"])
def test_a_host_whose_certificate_is_of_another_authority_or_address_does_not_get_the_secret(
    wrong: str, ours: Authority, theirs: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    settings = theirs.files(trusted=ours) if wrong == "authority" else ours.files(x509.DNSName("elsewhere"))

    async def main() -> None:
        async with Host(settings) as host:
            assert await host.calls_through_ray(ours.files()) == 1
            assert not host.calls

    asyncio.run(main())
    said = "certificate verify failed" if wrong == "authority" else "its certificate is not for 127.0.0.1"
    assert said in caplog.text


def test_who_does_not_encrypt_is_refused_by_one_who_does(ours: Authority) -> None:
    async def main() -> None:
        async with Host(ours.files()) as host:
            assert await host.calls_through_ray({}) == 1
            assert not host.calls
        async with Host({}) as host:
            assert await host.calls_through_ray(ours.files()) == 1
            assert not host.calls

    asyncio.run(main())


def test_who_says_nothing_is_cut_off_before_and_after_it_has_shown_a_certificate(
    ours: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PROOF_S", 0.2)
    told(monkeypatch, ours.files())

    async def main() -> None:
        async with Host(ours.files()) as host:
            reader, writer = await asyncio.open_connection(LOOPBACK, host.address.port)
            assert await asyncio.wait_for(reader.read(), 3) == b""
            writer.close()
            tls = channel.certificates.client_side()
            reader, writer = await asyncio.open_connection(LOOPBACK, host.address.port, ssl=tls)
            with suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(), 3) == b""
            writer.close()
            assert await host.calls_through_ray(ours.files()) == 0

    asyncio.run(main())


@pytest.mark.parametrize("lacking", [CERTIFICATE, KEY, AUTHORITY])
def test_where_certificates_cannot_be_read_calls_go_through_ray_and_the_log_says_which(
    lacking: str, ours: Authority, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with Host(ours.files()) as host:
            told(monkeypatch, {name: value for name, value in ours.files().items() if name != lacking})
            assert await Listener(host._note).open(LOOPBACK) is None  # pyright: ignore[reportPrivateUsage]
            monkeypatch.setitem(os.environ, lacking, "/nowhere.pem")
            assert await Listener(host._note).open(LOOPBACK) is None  # pyright: ignore[reportPrivateUsage]
            assert await host.calls_through_ray({**ours.files(), lacking: "/nowhere.pem"}) == 1

    with caplog.at_level(logging.WARNING):
        asyncio.run(main())
    first, second, third = caplog.messages
    assert f"RAY_USE_TLS is set, but {lacking} is not" in first
    assert second.startswith("cannot listen at 127.0.0.1") and "/nowhere.pem" in second
    assert third.startswith("cannot connect to the shards") and "/nowhere.pem" in third
