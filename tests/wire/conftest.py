"""Providers for the tests on the wire."""

import ssl
from collections.abc import Callable, Iterator

import pytest
import trustme
from raw_server import RawServer

from worker.providers.smtp import SmtpProvider


@pytest.fixture
def provider_of() -> Iterator[Callable[..., SmtpProvider]]:
    made: list[SmtpProvider] = []

    def make(server: RawServer, prefix: str = "smtp://", suffix: str = "", **options: float) -> SmtpProvider:
        made.append(SmtpProvider(f"{prefix}127.0.0.1:{server.port}{suffix}", **options))
        return made[-1]

    yield make
    for provider in made:
        provider.close()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's TLS context and the file of the authority that signed it."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return context, f"?ca_file={path}"
