"""A registry, by the OCI distribution specification v1.1, over https.

Plain http only to this machine, where it is asked for. A login is shown to the registry
itself, or to the server of tokens that it names over https, and to nobody that a
redirect or an upload's location names. Redirects are followed for blobs, which are
their digest wherever they come from. Of what a registry says in words, nothing is
repeated.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Self
from urllib.parse import urlencode, urljoin, urlsplit

from models.errors import BundleError
from sealgate.errors import JsonError
from sealgate.protocol import strict_json
from security.bounded_fetch import Answer, Exchanges, trusting
from security.errors import RegistryError, SettingsError
from security.registry.credentials import find_login, login_file
from security.registry.documents import (
    INDEX_TYPE,
    MANIFEST_TYPE,
    MANIFEST_TYPES,
    MAX_DOCUMENT_BYTES,
    Blob,
    Descriptor,
    parse_index,
    parse_manifest,
    sha256,
)
from security.registry.references import RegistryReference
from security.settings.issuers import https_url

__all__ = ["Registry"]

TIMEOUT_S = 3600.0
STALL_S = 60.0
_MAX_REDIRECTS = 5
_MAX_TOKEN_BYTES = 64 << 10
_MAX_CHALLENGE_BYTES = 4 << 10
_MAX_REFERRERS = 1000
# Whose API answers at another name than its images have.
_API_HOSTS = {"docker.io": "registry-1.docker.io"}
# A registry may offer several schemes, in one field or in several.
_SCHEME = re.compile(r"(?:^|, *)([A-Za-z]+)(?= +\w+=)")
_BEARER = re.compile(r"(?:^|, *)bearer +", re.IGNORECASE)
_PARAMETER = re.compile(r'(\w+)="([^"\\]*)"')
_TOKEN = re.compile(r"[\x21-\x7e]+")

_Fields = tuple[tuple[bytes, bytes], ...]


class Registry:
    """A repository in a registry.

    Args:
        reference: of the image there.
        authorities: who may certify the registry; the system's without it.
        plain_http: whether http will do, to this machine.
        environ: where `credentials.login_file` looks for logins.
        timeout_s: for all that is done.

    Raises:
        SettingsError: plain http to another machine.
        KeyFileError: no file of authorities.
    """

    def __init__(
        self,
        reference: RegistryReference,
        *,
        environ: Mapping[str, str],
        authorities: Path | None = None,
        plain_http: bool = False,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        host = _API_HOSTS.get(reference.host, reference.host)
        self._reference = reference
        self._plain = plain_http
        scheme = "http" if plain_http else "https"
        self._base = f"{scheme}://{host}/v2/{reference.name}/"
        if plain_http:
            what = f"{reference}, which is not on this machine"
            https_url(self._base, what, or_here=True)
        self._environ = environ
        self._context: ssl.SSLContext = trusting(authorities)
        self._exchanges = Exchanges(
            context=self._context, timeout_s=timeout_s, stall_s=STALL_S
        )
        self._authorization: bytes | None = None
        self._actions = "pull"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._exchanges.__exit__()

    def manifest(self) -> bytes:
        """The manifest that the reference names.

        Raises:
            BundleError: other bytes than its digest says.
            RegistryError: not there, or the registry does not give it.
        """
        named = self._reference.digest or self._reference.tag
        data, digest = self._manifest(named, MANIFEST_TYPES)
        if sha256(data) != (self._reference.digest or digest or sha256(data)):
            raise BundleError(f"{named}: other bytes than its digest says")
        return data

    def blob(self, descriptor: Descriptor) -> Iterator[bytes]:
        """A blob's bytes, unchecked.

        Raises:
            RegistryError: not there, or the registry does not give it.
        """
        url = urljoin(self._base, f"blobs/{descriptor.digest}")
        for _ in range(_MAX_REDIRECTS):
            with self._send("GET", url) as answer:
                if answer.status == 200:
                    yield from answer.chunks()
                    return
                url = self._location(answer, (301, 302, 303, 307, 308))
        raise RegistryError(f"{self._reference}: {_MAX_REDIRECTS} redirects")

    def put_blob(self, blob: Blob) -> None:
        """Write a blob, unless it is there (distribution-spec, "Pushing blobs")."""
        self._actions = "pull,push"
        digest = blob.descriptor.digest
        with self._send("HEAD", urljoin(self._base, f"blobs/{digest}")) as answer:
            if answer.status == 200:
                return
        with self._send("POST", urljoin(self._base, "blobs/uploads/")) as answer:
            url = self._location(answer, (202,))
        url += f"{'&' if urlsplit(url).query else '?'}{urlencode({'digest': digest})}"
        fields = (
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"%d" % blob.descriptor.size),
        )
        with self._send("PUT", url, fields, iter(blob.parts())) as answer:
            self._demand(answer, (201,))

    def put_manifest(self, data: bytes, tag: str) -> None:
        """Write a manifest under a tag."""
        self._put_manifest(data, tag, MANIFEST_TYPE)

    def put_referrer(self, data: bytes, subject: str) -> None:
        """Write a manifest that refers to another one.

        A registry that says that it minded the subject lists it by itself. For others
        the list is an index under a tag (distribution-spec, "Referrers tag schema");
        of two that write it at once, one may be lost there.
        """
        manifest = parse_manifest(data)
        added = Descriptor(
            MANIFEST_TYPE,
            sha256(data),
            len(data),
            manifest.annotations,
            manifest.artifact_type,
        )
        if "oci-subject" in self._put_manifest(data, added.digest, MANIFEST_TYPE):
            return
        tag = subject.replace(":", "-")
        try:
            listed = parse_index(self._manifest(tag, (INDEX_TYPE,))[0])
        except _NotThereError:
            listed = ()
        if any(item.digest == added.digest for item in listed):
            return
        if len(listed) >= _MAX_REFERRERS:
            raise RegistryError(f"{self._reference}: more than {_MAX_REFERRERS} refer")
        index = {
            "schemaVersion": 2,
            "mediaType": INDEX_TYPE,
            "manifests": [item.to_json() for item in (*listed, added)],
        }
        self._put_manifest(strict_json.dumps(index), tag, INDEX_TYPE)

    def _manifest(self, named: str, types: Iterable[str]) -> tuple[bytes, str]:
        """A manifest's bytes, and which digest the registry says that they have."""
        accept = tuple((b"accept", kind.encode()) for kind in types)
        url = urljoin(self._base, f"manifests/{named}")
        with self._send("GET", url, accept) as answer:
            self._demand(answer, (200,))
            return (
                answer.read(MAX_DOCUMENT_BYTES),
                answer.headers.get("docker-content-digest", ""),
            )

    def _put_manifest(self, data: bytes, named: str, kind: str) -> Mapping[str, str]:
        fields = (
            (b"content-type", kind.encode()),
            (b"content-length", b"%d" % len(data)),
        )
        url = urljoin(self._base, f"manifests/{named}")
        with self._send("PUT", url, fields, data) as answer:
            self._demand(answer, (201,))
            return answer.headers

    @contextmanager
    def _send(
        self,
        method: str,
        url: str,
        fields: _Fields = (),
        content: bytes | Iterator[bytes] | None = None,
    ) -> Iterator[Answer]:
        """Send a request; where the registry asks for a login, log in and once more.

        A blob's upload begins with a request without a body, so none is sent for
        nothing. A manifest is sent again: a token may have ended during the uploads.
        """
        with self._exchanges.send(
            method, url, headers=self._fields(url, fields), content=content
        ) as answer:
            again = content is None or isinstance(content, bytes)
            challenged = answer.status == 401 and self._own(url) and again
            challenge = answer.headers.get("www-authenticate", "")
            if not challenged:
                yield answer
                return
        self._log_in(challenge)
        with self._exchanges.send(
            method, url, headers=self._fields(url, fields), content=content
        ) as answer:
            yield answer

    def _fields(self, url: str, fields: _Fields) -> _Fields:
        fields = (*fields, (b"accept-encoding", b"identity"))
        if self._authorization is None or not self._own(url):
            return fields
        return (*fields, (b"authorization", self._authorization))

    def _own(self, url: str) -> bool:
        """Whether it is of the registry itself: only that one is shown a login."""
        return urlsplit(url)[:2] == urlsplit(self._base)[:2]

    def _log_in(self, challenge: str) -> None:
        """Answer a challenge (RFC 7235; distribution's "Token authentication")."""
        if len(challenge) > _MAX_CHALLENGE_BYTES:
            raise RegistryError(f"{self._reference}: a challenge without end")
        file = login_file(self._environ)
        host, name = self._reference.host, self._reference.name
        login = find_login(file, host, name) if file else None
        schemes = {word.lower() for word in _SCHEME.findall(challenge)}
        if "bearer" in schemes:
            basic = login.authorization if login else None
            self._authorization = b"Bearer " + self._token(challenge, basic)
        elif "basic" in schemes and login is not None:
            self._authorization = login.authorization
        else:
            where = file or "REGISTRY_AUTH_FILE, DOCKER_CONFIG or ~/.docker"
            raise RegistryError(f"{host} asks for a login; none is in {where}")

    def _token(self, challenge: str, login: bytes | None) -> bytes:
        """A token for this repository, of the server that the registry names."""
        # Of a name twice the first is this scheme's, what follows may be another's.
        found = _PARAMETER.findall(_BEARER.split(challenge)[1])
        parameters = dict(reversed(found))
        # What is asked for is our own business: never the challenge's scope.
        query = {"scope": f"repository:{self._reference.name}:{self._actions}"}
        if "service" in parameters:
            query["service"] = parameters["service"]
        realm = self._allowed(parameters.get("realm", ""))
        url = f"{realm}{'&' if '?' in realm else '?'}{urlencode(query)}"
        fields = ((b"authorization", login),) if login else ()
        with self._exchanges.send("GET", url, headers=fields) as answer:
            if answer.status != 200:
                whose = "the login" if login else "a stranger, without a login,"
                raise RegistryError(
                    f"{self._reference}: {whose} is refused ({answer.status})"
                )
            data = answer.read(_MAX_TOKEN_BYTES)
        try:
            document = strict_json.loads_object(data, max_bytes=_MAX_TOKEN_BYTES)
        except JsonError:
            document = {}
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise RegistryError(f"{self._reference}: its server of tokens gave none")
        return token.encode()

    def _location(self, answer: Answer, statuses: tuple[int, ...]) -> str:
        self._demand(answer, statuses)
        return self._allowed(urljoin(answer.url, answer.headers.get("location", "")))

    def _allowed(self, url: str) -> str:
        """A URL that the registry named: https, or this machine by http.

        Raises:
            RegistryError: it is neither.
        """
        try:
            return https_url(url, str(self._reference), or_here=self._plain)
        except SettingsError:
            raise RegistryError(f"{self._reference} names a URL: only https") from None

    def _demand(self, answer: Answer, statuses: tuple[int, ...]) -> None:
        if answer.status in statuses:
            return
        what = f"{self._reference}:{answer.url.partition('?')[0].rpartition('/')[2]}"
        if answer.status == 404:
            raise _NotThereError(f"{what}: not there")
        if answer.status in (401, 403):
            raise RegistryError(f"{what}: may not be read or written ({answer.status})")
        raise RegistryError(f"{what}: answered {answer.status}")


class _NotThereError(RegistryError):
    """The registry has no such thing."""
