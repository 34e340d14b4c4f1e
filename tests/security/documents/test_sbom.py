"""The SBOM of the serving image: valid, complete, and refusing what it cannot read."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest

from models.report import Subject
from security.documents.sbom import serving_sbom
from security.errors import SettingsError
from tests.security.documents.test_bom import validator
from tests.support.servers import ROOT

REQUIREMENTS = (ROOT / "requirements" / "serve.txt").read_bytes()
A, B = "a" * 64, "b" * 64


@pytest.fixture(scope="session")
def cyclonedx(shared_data) -> jsonschema.Draft7Validator:
    return validator(shared_data)


def components(text: str) -> list[dict]:
    return json.loads(serving_sbom(text.encode(), bento=None))["components"]


def test_the_projects_requirements(cyclonedx):
    data = serving_sbom(REQUIREMENTS, bento="sealgate:abc123")
    assert data == serving_sbom(REQUIREMENTS, bento="sealgate:abc123")
    document = json.loads(data)
    cyclonedx.validate(document)
    pinned = re.findall(rb"(?m)^([\w.-]+)==([\w.+!-]+)", REQUIREMENTS)
    found = {(c["name"], c["version"]) for c in document["components"]}
    assert found == {(name.decode(), version.decode()) for name, version in pinned}
    hashes = {
        h["content"]
        for c in document["components"]
        for h in c["externalReferences"][0]["hashes"]
    }
    stated = re.findall(rb"--hash=sha256:([0-9a-f]{64})", REQUIREMENTS)
    assert hashes == {digest.decode() for digest in stated}
    root = document["metadata"]["component"]
    assert (root["name"], root["version"]) == ("sealgate", "abc123")
    depends = document["dependencies"][0]
    assert depends["ref"] == root["bom-ref"]
    assert depends["dependsOn"] == [c["bom-ref"] for c in document["components"]]


def test_a_requirement():
    text = f"Foo_Bar[x,y]==1.0+cpu ; os_name == 'nt' \\\n  --hash=sha256:{B} \\\n"
    (found,) = components(f"# comment\n\n{text}  --hash=sha256:{A}\n    # via baz\n")
    assert found["purl"] == found["bom-ref"] == "pkg:pypi/foo-bar@1.0%2Bcpu"
    assert found["scope"] == "optional"
    assert found["properties"][0]["value"] == "os_name == 'nt'"
    hashes = found["externalReferences"][0]["hashes"]
    assert [item["content"] for item in hashes] == [A, B]


def test_without_hashes_and_without_a_bento():
    document = json.loads(serving_sbom(b"b==2\na==1\n", bento=None))
    names = [item["name"] for item in document["components"]]
    assert names == ["a", "b"]
    assert "externalReferences" not in document["components"][0]
    assert "version" not in document["metadata"]["component"]
    other = json.loads(serving_sbom(b"b==2\na==1\n", bento="m:1"))
    assert other["serialNumber"] != document["serialNumber"]


def test_an_image_with_its_base_and_its_models(cyclonedx):
    base, subject = f"registry.example/python:3.11-slim@sha256:{A}", "b" * 64
    model = Subject("m", "1.0.0", subject, A)
    data = serving_sbom(b"a==1\n", bento="s:1", base=base, models=[model])
    document = json.loads(data)
    cyclonedx.validate(document)
    kinds = {part["type"]: part for part in document["components"]}
    assert kinds["container"]["purl"] == f"pkg:oci/python@sha256%3A{A}"
    assert kinds["machine-learning-model"]["hashes"][0]["content"] == subject
    assert len(document["dependencies"][0]["dependsOn"]) == 3
    plain = json.loads(serving_sbom(b"a==1\n", bento="s:1"))
    assert plain["serialNumber"] != document["serialNumber"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "name no package"),
        (b"# only\n", "name no package"),
        (b"a==1\nb>=2\n", "line 2: not name==version"),
        (b"a==1\n\nb\n", "line 3: not name==version"),
        (b"-r other.txt\n", "line 1"),
        (b"a @ https://evil.example/a.whl\n", "line 1"),
        (b"a==1 --hash=md5:00\n", "line 1"),
        (b"a==1 --hash=sha256:00\n", "line 1"),
        (b"a==1 \\\n  --index-url=https://evil.example\n", "line 1"),
        (b'a"==1\n', "line 1"),
        (b"\xff==1\n", "not UTF-8"),
    ],
)
def test_refused(text, message):
    with pytest.raises(SettingsError, match=f"requirements.*{message}"):
        serving_sbom(text, bento=None)


@pytest.mark.parametrize("name", ["", "A B", "x:", "a:b:c", "../x"])
def test_bad_bento(name):
    with pytest.raises(SettingsError, match="name:version"):
        serving_sbom(b"a==1", bento=name)
