"""Values that the chart is rendered with, and values that it refuses."""

from __future__ import annotations

from typing import Any

DIGEST = "sha256:" + "0123456789abcdef" * 4
REDIS = {"secret": "sealgate-redis", "peers": [{"ipBlock": {"cidr": "192.0.2.9/32"}}]}
PROMETHEUS = [
    {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "prom"}}}
]
IMAGE = {"image": {"repository": "REGISTRY/sealgate", "digest": DIGEST}}

VARIANTS: dict[str, dict[str, Any]] = {
    "example": {},
    "shared": {
        "replicas": 3,
        "redis": {**REDIS, "ca": "redis-ca", "ports": [6380, 26380]},
        "secrets": {"follow": False},
    },
    "scaled": {
        "redis": REDIS,
        "trust": {"configMap": "own-trust", "trust": "", "jwks": ""},
        "autoscaling": {"enabled": True},
        "networkPolicy": {"metricsFrom": PROMETHEUS},
        "metrics": {
            "port": 9090,
            "serviceMonitor": {"enabled": True, "labels": {"release": "prom"}},
            "rules": {"enabled": True},
        },
    },
    "tls": {
        "access": {
            "jwksUrl": "https://issuer.example/jwks",
            "jwksPeers": [{"ipBlock": {"cidr": "192.0.2.80/32"}}],
        },
        "tls": {
            "enabled": True,
            "clientCertificates": "optional",
            "clientCa": "clients",
            "certManager": {
                "enabled": True,
                "issuer": "internal",
                "dnsNames": ["models.example"],
            },
        },
        "networkPolicy": {
            "metricsFrom": PROMETHEUS,
            "egress": [
                {
                    "to": [{"podSelector": {"matchLabels": {"app": "collector"}}}],
                    "ports": [{"port": 4318, "protocol": "TCP"}],
                }
            ],
        },
        "metrics": {
            "serviceMonitor": {
                "enabled": True,
                "ca": "internal-ca",
                "oauth2": {
                    "tokenUrl": "https://issuer.example/token",
                    "secret": "prometheus-client",
                    "audience": "urn:AUDIENCE",
                },
            }
        },
        "extraEnv": [
            {"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4318"}
        ],
    },
    "token": {
        "networkPolicy": {"metricsFrom": PROMETHEUS},
        "metrics": {"serviceMonitor": {"enabled": True, "bearer": "metrics-token"}},
        "models": {"image": f"REGISTRY/credit@{DIGEST}"},
        "audit": {"claim": "audit"},
    },
    "files": {
        "files": {
            "permissions": "[access.toml]",
            "quotas": "[quotas.toml]",
            "policy": "[policy.toml]",
            "service": "[service.toml]",
        },
        "settings": {
            "service": {"max_concurrency": 128, "inference_timeout_s": 2.5},
            "sealing": {"require_date": False},
            "runtime": {"providers": ["CPUExecutionProvider"]},
        },
        "models": {"claim": "bundles"},
        "pod": {
            "labels": {"team": "risk"},
            "annotations": {"note": "x"},
            "nodeSelector": {"disk": "ssd"},
            "tolerations": [{"key": "gpu", "operator": "Exists"}],
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "high",
        },
        "arguments": ["--backlog", "512"],
        "service": {"type": "LoadBalancer", "annotations": {"internal": "yes"}},
        "image": {"pullSecrets": ["registry"]},
    },
    "trial": {
        "replicas": 2,
        "redis": {
            "secret": "sealgate-redis",
            "trial": {"enabled": True, "image": f"REGISTRY/redis@{DIGEST}"},
        },
    },
    "trial-tls": {
        "redis": {
            "secret": "sealgate-redis",
            "ca": "redis-ca",
            "trial": {
                "enabled": True,
                "image": f"REGISTRY/redis@{DIGEST}",
                "tls": "redis-tls",
            },
        },
    },
}

# Values, and what the refusal says.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "several that share nothing": (
        {"replicas": 2},
        "redis.secret: is not set: several replicas",
    ),
    "an autoscaler of pods that share nothing": (
        {"autoscaling": {"enabled": True}},
        "redis.secret: is not set: several replicas",
    ),
    "an autoscaler that looks at nothing": (
        {
            "redis": REDIS,
            "autoscaling": {"enabled": True, "metric": "", "cpu": 0},
        },
        "autoscaling: neither metric nor cpu",
    ),
    "fewer at most than at least": (
        {
            "redis": REDIS,
            "autoscaling": {"enabled": True, "minReplicas": 4, "maxReplicas": 3},
        },
        "autoscaling.maxReplicas: below minReplicas",
    ),
    "a tag": ({"image": {"digest": "latest"}}, "/image/digest"),
    "a tag in the repository": (
        {"image": {"repository": "REGISTRY/sealgate@sha256:0"}},
        "/image/repository",
    ),
    "no image": ({"image": {"repository": ""}}, "image.repository: is not set"),
    "no issuer": ({"access": {"issuer": ""}}, "access.issuer: is not set"),
    "plain http": ({"access": {"resource": "http://host"}}, "/access/resource"),
    "keys of an issuer over plain http": (
        {"access": {"jwksUrl": "http://issuer/jwks"}},
        "/access/jwksUrl",
    ),
    "no trust": ({"trust": {"trust": ""}}, "trust.trust: is not set"),
    "no keys of an issuer": ({"trust": {"jwks": ""}}, "trust.jwks: is not set"),
    "a private key among public ones": (
        {"trust": {"jwks": '{"keys":[{"kty":"OKP","d":"secret"}]}'}},
        "trust.jwks: holds a private key",
    ),
    "a shared secret among public keys": (
        {"trust": {"jwks": '{"keys":[{"kty":"oct","k":"secret"}]}'}},
        "trust.jwks: holds a private key",
    ),
    "a private key as a file": (
        {"files": {"permissions": "-----BEGIN PRIVATE KEY-----"}},
        "permissions: holds a private key",
    ),
    "a password for the name of a Secret": (
        {"redis": {"secret": "rediss://user:password@redis:6380/0"}},
        "/redis/secret",
    ),
    "a Redis behind the wall": (
        {"redis": {"secret": "sealgate-redis"}},
        "redis.peers: is not set",
    ),
    "an issuer behind the wall": (
        {"access": {"jwksUrl": "https://issuer/jwks"}},
        "access.jwksPeers: is not set",
    ),
    "Prometheus behind the wall": (
        {"metrics": {"serviceMonitor": {"enabled": True, "bearer": "token"}}},
        "networkPolicy.metricsFrom: is not set",
    ),
    "metrics for everybody": (
        {"metrics": {"port": 9090}, "service": {"type": "LoadBalancer"}},
        "metrics.port: has no token, and a Service of type LoadBalancer",
    ),
    "metrics without a token": (
        {
            "metrics": {"serviceMonitor": {"enabled": True}},
            "networkPolicy": {"metricsFrom": PROMETHEUS},
        },
        "metrics.serviceMonitor: needs bearer, oauth2 or metrics.port",
    ),
    "two tokens": (
        {
            "metrics": {
                "serviceMonitor": {
                    "enabled": True,
                    "bearer": "token",
                    "oauth2": {"tokenUrl": "https://issuer/token", "secret": "client"},
                }
            },
            "networkPolicy": {"metricsFrom": PROMETHEUS},
        },
        "bearer or oauth2, not both",
    ),
    "one private key": (
        {"trust": {"trust": "{}", "jwks": '{"kty":"EC","d":"secret"}'}},
        "trust.jwks: is no list of keys",
    ),
    "everybody may call": ({"networkPolicy": {"from": []}}, "/networkPolicy/from"),
    "everybody may call, by null": (
        {"networkPolicy": {"from": None}},
        "/networkPolicy",
    ),
    "a peer that is everybody": (
        {"networkPolicy": {"from": [{}]}},
        "/networkPolicy/from",
    ),
    "a way out to everybody": (
        {"networkPolicy": {"egress": [{"ports": [{"port": 443}]}]}},
        "/networkPolicy/egress",
    ),
    "a certificate that probes lack": (
        {"tls": {"enabled": True, "clientCertificates": "required"}},
        "/tls/clientCertificates",
    ),
    "certificates of nobody": (
        {"tls": {"enabled": True, "clientCertificates": "optional"}},
        "tls.clientCertificates: needs tls.enabled and tls.clientCa",
    ),
    "a certificate that is not served": (
        {"tls": {"certManager": {"enabled": True, "issuer": "x"}}},
        "tls.certManager: needs tls.enabled",
    ),
    "settings beside nothing": (
        {"files": {"service": "[service]"}},
        "files.service: needs files.permissions",
    ),
    "a setting that the chart sets": (
        {"settings": {"access": {"issuer": "https://other"}}},
        "settings.access.issuer: the chart sets SEALGATE_ACCESS_ISSUER",
    ),
    "a store in plain sight": (
        {"redis": REDIS, "settings": {"quotas": {"store": "redis://user:pw@host"}}},
        "settings.quotas.store: the chart sets SEALGATE_QUOTAS_STORE",
    ),
    "a store in plain sight, without a Secret": (
        {"settings": {"quotas": {"store": "redis://user:pw@host"}}},
        "settings.quotas.store: the chart sets SEALGATE_QUOTAS_STORE",
    ),
    "a setting behind the chart's back": (
        {"extraEnv": [{"name": "SEALGATE_ACCESS_ISSUER", "value": "x"}]},
        "/extraEnv/0/name",
    ),
    "two places for models": (
        {"models": {"image": f"REGISTRY/credit@{DIGEST}", "claim": "x"}},
        "models: image or claim, not both",
    ),
    "models by tag": ({"models": {"image": "REGISTRY/credit:1"}}, "/models/image"),
    "a trial without an image": (
        {"redis": {"secret": "x", "trial": {"enabled": True}}},
        "redis.trial.image: is not set",
    ),
    "a trial without its users": (
        {"redis": {"trial": {"enabled": True, "image": f"R/redis@{DIGEST}"}}},
        "redis.secret: is not set: the trial's Redis",
    ),
    "a misspelt value": ({"replica": 2}, "'replica'"),
    "a misspelt value inside": ({"redis": {"url": "x"}}, "'url'"),
    "a number for a word": ({"audit": {"name": 3}}, "/audit/name"),
    "a port of two": ({"metrics": {"port": 3000}}, "/metrics/port"),
}
