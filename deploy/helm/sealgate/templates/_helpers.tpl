{{/* The release's name, which has the chart's in it. */}}
{{- define "sealgate.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "sealgate.selector" -}}
app.kubernetes.io/name: sealgate
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sealgate.labels" -}}
{{ include "sealgate.selector" . }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The in-chart Redis has labels of its own, or the Service would send it requests. */}}
{{- define "sealgate.redisSelector" -}}
app.kubernetes.io/name: sealgate-redis
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "sealgate.image" -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- end -}}

{{- define "sealgate.trust" -}}
{{ .Values.trust.configMap | default (printf "%s-trust" (include "sealgate.name" .)) }}
{{- end -}}

{{- define "sealgate.locked" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: ["ALL"]}
{{- end -}}

{{/* Whether anything of files.* is given. */}}
{{- define "sealgate.ownFiles" -}}
{{- with .Values.files }}{{ if or .permissions .quotas .policy .service }}yes{{ end }}{{ end -}}
{{- end -}}

{{/*
Secrets are mounted as links, readable by the group; the server takes neither. So they are
copied into memory. A file that is new or has changed takes the old one's place in one step,
and a sealing key that was taken away goes.
*/}}
{{- define "sealgate.copy" -}}
umask 077
mkdir -p /state/keys/hpke /state/tls /state/audit
take() {
  cmp -s "$1" "$2" && return
  cp -L "$1" /state/taken && mv /state/taken "$2"
}
copy() {
  for file in /secrets/hpke/*.pem; do
    take "$file" "/state/keys/hpke/${file##*/}"
  done
  for file in /state/keys/hpke/*.pem; do
    [ -e "/secrets/hpke/${file##*/}" ] || rm "$file"
  done
  {{- if not .Values.access.jwksUrl }}
  take /trust/jwks.json /state/jwks.json
  {{- end }}
  {{- if .Values.tls.enabled }}
  take /secrets/tls/tls.key /state/tls/key.pem
  take /secrets/tls/tls.crt /state/tls/certificate.pem
  {{- end }}
}
{{- end -}}

{{- define "sealgate.copyMounts" -}}
- {name: state, mountPath: /state}
- {name: hpke, mountPath: /secrets/hpke, readOnly: true}
- {name: server, mountPath: /secrets/server, readOnly: true}
- {name: trust, mountPath: /trust, readOnly: true}
{{- if .Values.tls.enabled }}
- {name: tls, mountPath: /secrets/tls, readOnly: true}
{{- end }}
{{- end -}}

{{/* What the chart sets itself: variable, and value as `bentoml serve` reads it. */}}
{{- define "sealgate.environment" -}}
{{- $v := .Values -}}
SEALGATE_HOME: /state
SEALGATE_SERVICE_ENVIRONMENT: production
SEALGATE_SERVICE_SHUTDOWN_TIMEOUT_S: {{ $v.drain.graceful | quote }}
SEALGATE_ACCESS_ISSUER: {{ $v.access.issuer | quote }}
SEALGATE_ACCESS_AUDIENCE: {{ $v.access.audience | quote }}
SEALGATE_ACCESS_RESOURCE: {{ $v.access.resource | quote }}
{{- if $v.access.jwksUrl }}
SEALGATE_ACCESS_JWKS: {{ $v.access.jwksUrl | quote }}
{{- end }}
SEALGATE_AUDIT_NAME: {{ $v.audit.name | quote }}
{{- if $v.files.service }}
SEALGATE_CONFIG: /config/service.toml
{{- end }}
{{- if $v.files.permissions }}
SEALGATE_ACCESS_PERMISSIONS: /config/access.toml
{{- end }}
{{- if $v.files.quotas }}
SEALGATE_QUOTAS_TABLE: /config/quotas.toml
{{- end }}
{{- if $v.files.policy }}
SEALGATE_ADMISSION_POLICY: /config/policy.toml
{{- end }}
{{- if or $v.models.image $v.models.claim }}
SEALGATE_SERVICE_MODELS: path:/models
{{- end }}
{{- if $v.tls.enabled }}
SEALGATE_TLS_ENABLED: "true"
SEALGATE_TLS_CLIENT_CERTIFICATES: {{ $v.tls.clientCertificates | quote }}
{{- if $v.tls.clientCa }}
SEALGATE_TLS_CLIENT_CA: /client-ca/ca.crt
{{- end }}
{{- end }}
{{- if $v.redis.ca }}
SEALGATE_REDIS_CA: /redis-ca/ca.crt
{{- end }}
{{- if $v.metrics.port }}
SEALGATE_OBSERVABILITY_METRICS_PORT: {{ $v.metrics.port | quote }}
SEALGATE_OBSERVABILITY_METRICS_HOST: 0.0.0.0
{{- end }}
{{- end -}}

{{/* Variables that hold the address of the shared Redis, with its password. */}}
{{- define "sealgate.stores" -}}
stores:
  - SEALGATE_SEALING_REPLAY_STORE
  - SEALGATE_QUOTAS_STORE
  - SEALGATE_ACCESS_REVOCATION_STORE
  - SEALGATE_MONITORING_STORE
{{- end -}}

{{/* What may not be rendered, with the reason. */}}
{{- define "sealgate.check" -}}
{{- $v := .Values -}}
{{- range $name := list "repository" "digest" -}}
{{- if not (get $v.image $name) }}{{ fail (printf "image.%s: is not set" $name) }}{{ end -}}
{{- end -}}
{{- range $name := list "issuer" "audience" "resource" -}}
{{- if not (get $v.access $name) }}{{ fail (printf "access.%s: is not set" $name) }}{{ end -}}
{{- end -}}
{{- if not $v.audit.name }}{{ fail "audit.name: is not set" }}{{ end -}}
{{- if and (not $v.trust.configMap) (not $v.trust.trust) -}}
{{- fail "trust.trust: is not set, nor trust.configMap: --set-file trust.trust=trust.json" -}}
{{- end -}}
{{- if not (or $v.trust.configMap $v.trust.jwks $v.access.jwksUrl) -}}
{{- fail "trust.jwks: is not set, nor access.jwksUrl: no token could be verified" -}}
{{- end -}}
{{- /* A ConfigMap is read by everybody who may look at the namespace. */ -}}
{{- range $name, $text := merge (dict "trust.trust" $v.trust.trust "trust.jwks" $v.trust.jwks) $v.files -}}
{{- if contains "PRIVATE KEY" $text }}{{ fail (printf "%s: holds a private key" $name) }}{{ end -}}
{{- end -}}
{{- range $name, $text := $v.trust -}}
{{- if and $text (ne $name "configMap") (hasKey (fromJson $text) "Error") -}}
{{- fail (printf "trust.%s: is not a JSON object" $name) -}}
{{- end -}}
{{- end -}}
{{- $jwks := fromJson (default "{}" $v.trust.jwks) -}}
{{- if and $v.trust.jwks (not (kindIs "slice" $jwks.keys)) }}{{ fail "trust.jwks: is no list of keys" }}{{ end -}}
{{- range $jwks.keys -}}
{{- if or (hasKey . "d") (hasKey . "k") }}{{ fail "trust.jwks: holds a private key" }}{{ end -}}
{{- end -}}
{{- $pods := $v.replicas -}}
{{- if $v.autoscaling.enabled }}{{ $pods = max $v.autoscaling.maxReplicas $v.autoscaling.minReplicas }}{{ end -}}
{{- if and (gt (int $pods) 1) (not $v.redis.secret) -}}
{{- fail "redis.secret: is not set: several replicas must share quotas, replays and revocations" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (not $v.autoscaling.metric) (not $v.autoscaling.cpu) -}}
{{- fail "autoscaling: neither metric nor cpu" -}}
{{- end -}}
{{- if and $v.autoscaling.enabled (lt (int $v.autoscaling.maxReplicas) (int $v.autoscaling.minReplicas)) -}}
{{- fail "autoscaling.maxReplicas: below minReplicas" -}}
{{- end -}}
{{- if and $v.redis.trial.enabled (not $v.redis.trial.image) }}{{ fail "redis.trial.image: is not set" }}{{ end -}}
{{- if and $v.redis.trial.enabled (not $v.redis.secret) -}}
{{- fail "redis.secret: is not set: the trial's Redis reads users.acl there, the server url" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled $v.redis.secret (not $v.redis.trial.enabled) (not $v.redis.peers) -}}
{{- fail "redis.peers: is not set: the NetworkPolicy would keep the server from its Redis" -}}
{{- end -}}
{{- if and $v.networkPolicy.enabled $v.access.jwksUrl (not $v.access.jwksPeers) -}}
{{- fail "access.jwksPeers: is not set: the NetworkPolicy would keep the server from the issuer's keys" -}}
{{- end -}}
{{- if and $v.files.service (not (and $v.files.permissions $v.files.quotas $v.files.policy)) -}}
{{- fail "files.service: needs files.permissions, files.quotas and files.policy beside it" -}}
{{- end -}}
{{- if and $v.models.image $v.models.claim }}{{ fail "models: image or claim, not both" }}{{ end -}}
{{- if and $v.tls.certManager.enabled (not $v.tls.enabled) }}{{ fail "tls.certManager: needs tls.enabled" }}{{ end -}}
{{- if and $v.tls.certManager.enabled (not $v.tls.certManager.issuer) }}{{ fail "tls.certManager.issuer: is not set" }}{{ end -}}
{{- if and (ne $v.tls.clientCertificates "off") (not (and $v.tls.enabled $v.tls.clientCa)) -}}
{{- fail "tls.clientCertificates: needs tls.enabled and tls.clientCa" -}}
{{- end -}}
{{- if and $v.metrics.port (ne $v.service.type "ClusterIP") -}}
{{- fail (printf "metrics.port: has no token, and a Service of type %s would publish it" $v.service.type) -}}
{{- end -}}
{{- with $v.metrics.serviceMonitor -}}
{{- if .enabled -}}
{{- if and (not $v.metrics.port) (not .bearer) (not .oauth2.tokenUrl) -}}
{{- fail "metrics.serviceMonitor: needs bearer, oauth2 or metrics.port: /metrics is for tokens of scope metrics" -}}
{{- end -}}
{{- if and .oauth2.tokenUrl (not .oauth2.secret) }}{{ fail "metrics.serviceMonitor.oauth2.secret: is not set" }}{{ end -}}
{{- if and .bearer .oauth2.tokenUrl }}{{ fail "metrics.serviceMonitor: bearer or oauth2, not both" }}{{ end -}}
{{- if and $v.networkPolicy.enabled (not $v.networkPolicy.metricsFrom) -}}
{{- fail "networkPolicy.metricsFrom: is not set: the NetworkPolicy would keep Prometheus out" -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
