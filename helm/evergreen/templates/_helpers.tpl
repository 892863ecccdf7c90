{{/* Names, and what several kinds of objects share. */}}

{{- define "evergreen.contexts" -}}
identity enrollment policy telemetry attestation audit
{{- end }}

{{- define "evergreen.httpContexts" -}}
identity enrollment policy telemetry attestation
{{- end }}

{{- define "evergreen.name" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end }}

{{- define "evergreen.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
app.kubernetes.io/name: evergreen
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{/* Labels that find the pods of a component: (dict "root" $ "component" "policy"). */}}
{{- define "evergreen.selector" -}}
app.kubernetes.io/name: evergreen
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "evergreen.production" -}}
{{- if eq .Values.profile "production" }}yes{{ end -}}
{{- end }}

{{/* A switch of which null means: on in production. (list $ value) */}}
{{- define "evergreen.on" -}}
{{- $root := index . 0 }}{{- $value := index . 1 }}
{{- if kindIs "invalid" $value }}{{ include "evergreen.production" $root }}{{ else if $value }}yes{{ end -}}
{{- end }}

{{/* Replicas: as given, else 2 in production and 1 otherwise. (list $ value) */}}
{{- define "evergreen.replicas" -}}
{{- $root := index . 0 }}{{- $value := index . 1 }}
{{- if kindIs "invalid" $value }}{{ if include "evergreen.production" $root }}2{{ else }}1{{ end }}{{ else }}{{ $value }}{{ end -}}
{{- end }}

{{/* An image by digest, if one is given. (dict "image" … "root" $) */}}
{{- define "evergreen.imageOf" -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag }}{{ end -}}
{{- end }}

{{- define "evergreen.image" -}}
{{- $image := .Values.image }}
{{- include "evergreen.imageOf" (dict "repository" $image.repository "digest" $image.digest "tag" ($image.tag | default .Chart.AppVersion)) -}}
{{- end }}

{{- define "evergreen.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "evergreen.name" .) }}{{ else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end }}

{{/* Pod Security "restricted". */}}
{{- define "evergreen.podSecurity" -}}
runAsNonRoot: true
runAsUser: {{ . }}
runAsGroup: {{ . }}
fsGroup: {{ . }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "evergreen.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The names of secrets: the given one, else the chart's own. */}}
{{- define "evergreen.secret.admin" -}}{{ .Values.admin.existingSecret | default (printf "%s-admin" (include "evergreen.name" .)) }}{{- end }}
{{- define "evergreen.secret.masterKey" -}}{{ .Values.masterKey.existingSecret | default (printf "%s-master-key" (include "evergreen.name" .)) }}{{- end }}
{{- define "evergreen.secret.inside" -}}{{ .Values.insideTls.existingSecret | default (printf "%s-inside" (include "evergreen.name" .)) }}{{- end }}
{{- define "evergreen.secret.gatewayTls" -}}{{ .Values.gateway.tls.existingSecret | default (printf "%s-gateway-tls" (include "evergreen.name" .)) }}{{- end }}
{{- define "evergreen.secret.databaseAdmin" -}}{{ .Values.database.admin.existingSecret | default (printf "%s-database-admin" (include "evergreen.name" .)) }}{{- end }}
{{- define "evergreen.secret.migrator" -}}{{ .Values.database.migrator.existingSecret | default (printf "%s-database-migrator" (include "evergreen.name" .)) }}{{- end }}
{{- define "evergreen.secret.databaseServices" -}}{{ .Values.database.services.existingSecret | default (printf "%s-database-services" (include "evergreen.name" .)) }}{{- end }}
{{- define "evergreen.secret.nats" -}}{{ .Values.nats.existingSecret | default (printf "%s-nats" (include "evergreen.name" .)) }}{{- end }}

{{- define "evergreen.databaseHost" -}}
{{- if .Values.database.bundled }}{{ include "evergreen.name" . }}-postgres{{ else }}{{ required "database.host is needed when database.bundled is false" .Values.database.host }}{{ end -}}
{{- end }}

{{- define "evergreen.databaseUrl" -}}
{{- $root := index . 0 }}{{- $role := index . 1 }}
{{- $database := index . 2 -}}
postgresql://{{ $role }}@{{ include "evergreen.databaseHost" $root }}:{{ $root.Values.database.port }}/{{ $database }}?sslmode={{ $root.Values.database.sslMode }}
{{- if ne $root.Values.database.sslMode "disable" }}&sslrootcert={{ include "evergreen.databaseCa" $root }}{{ end -}}
{{- end }}

{{- define "evergreen.databaseCa" -}}
{{- if or .Values.database.bundled (not .Values.database.caSecret) }}/run/evergreen/ca.crt{{ else }}/etc/evergreen/database/ca.crt{{ end -}}
{{- end }}

{{/* All servers of a cluster: a name for all of them may lead to one that is down, again and again. */}}
{{- define "evergreen.natsUrl" -}}
{{- if not .Values.nats.bundled }}{{ required "nats.url is needed when nats.bundled is false" .Values.nats.url }}
{{- else if eq (include "evergreen.natsReplicas" .) "1" }}tls://{{ include "evergreen.name" . }}-nats:4222
{{- else }}tls://{{ include "evergreen.natsHosts" . | replace "," ":4222,tls://" }}:4222{{ end -}}
{{- end }}

{{/* The servers of a cluster, with commas between them. */}}
{{- define "evergreen.natsHosts" -}}
{{- $name := include "evergreen.name" . }}
{{- range $n := until (int (include "evergreen.natsReplicas" .)) }}{{ if $n }},{{ end }}{{ printf "%s-nats-%d.%s-nats.%s.svc" $name $n $name $.Release.Namespace }}{{ end -}}
{{- end }}

{{- define "evergreen.natsCa" -}}
{{- if or .Values.nats.bundled (not .Values.nats.caSecret) }}/run/evergreen/ca.crt{{ else }}/etc/evergreen/nats/ca.crt{{ end -}}
{{- end }}

{{- define "evergreen.natsReplicas" -}}
{{- if kindIs "invalid" .Values.nats.replicas }}{{ if include "evergreen.production" . }}3{{ else }}1{{ end }}{{ else }}{{ .Values.nats.replicas }}{{ end -}}
{{- end }}

{{/* What the production profile refuses. */}}
{{- define "evergreen.check" -}}
{{- if include "evergreen.production" . }}
{{- if .Values.database.bundled }}{{ fail "profile production: give an external PostgreSQL (database.bundled: false, database.host, …); the bundled one is for evaluation" }}{{ end }}
{{- if and .Values.nats.bundled (lt (int (include "evergreen.natsReplicas" .)) 3) }}{{ fail "profile production: nats.replicas must be at least 3" }}{{ end }}
{{- range $context := splitList " " (include "evergreen.contexts" .) }}
{{- $service := mergeOverwrite (deepCopy $.Values.serviceDefaults) (index $.Values.services $context) }}
{{- if lt (int (include "evergreen.replicas" (list $ $service.replicas))) 2 }}{{ fail (printf "profile production: services.%s.replicas must be at least 2" $context) }}{{ end }}
{{- end }}
{{- if lt (int (include "evergreen.replicas" (list . .Values.gateway.replicas))) 2 }}{{ fail "profile production: gateway.replicas must be at least 2" }}{{ end }}
{{- end }}
{{- if and .Values.nats.events.expose (not .Values.nats.events.url) }}{{ fail "nats.events.expose needs nats.events.url: the address that integrators are told, as tls://events.example.org:4222" }}{{ end }}
{{- if not .Values.publicUrl }}{{ fail "publicUrl is needed: the address at which devices and browsers reach the gateway, as https://evergreen.example.org" }}{{ end }}
{{- end }}

{{- define "evergreen.publicHost" -}}
{{- (urlParse .Values.publicUrl).hostname -}}
{{- end }}

{{/* The host at which integrators reach NATS. */}}
{{- define "evergreen.eventsHost" -}}
{{- (urlParse .Values.nats.events.url).hostname -}}
{{- end }}

{{/* Spread over nodes and zones. (dict "root" $ "component" …) */}}
{{- define "evergreen.spread" -}}
{{- if include "evergreen.on" (list .root .root.Values.topologySpread.enabled) }}
topologySpreadConstraints:
  {{- range $key := list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ $key }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "evergreen.selector" $ | nindent 8 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* The certificate of a party inside the walls, as files of one volume. (list $ name) */}}
{{- define "evergreen.insideVolume" -}}
{{- $root := index . 0 }}{{- $name := index . 1 -}}
name: inside
secret:
  secretName: {{ include "evergreen.secret.inside" $root }}
  defaultMode: 0440
  items:
    - {key: ca.crt, path: ca.crt}
    - {key: {{ $name }}.crt, path: tls.crt}
    - {key: {{ $name }}.key, path: tls.key}
{{- end }}

{{- define "evergreen.drain" -}}
exec 3<>/dev/tcp/127.0.0.1/9901; printf 'POST /healthcheck/fail HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n' >&3; cat <&3 >/dev/null; sleep 15
{{- end }}

{{/* The CAs of an external PostgreSQL and NATS. */}}
{{- define "evergreen.caMounts" -}}
{{- if and (not .Values.database.bundled) .Values.database.caSecret }}
- {name: database-ca, mountPath: /etc/evergreen/database, readOnly: true}
{{- end }}
{{- if and (not .Values.nats.bundled) .Values.nats.caSecret }}
- {name: nats-ca, mountPath: /etc/evergreen/nats, readOnly: true}
{{- end }}
{{- end }}

{{- define "evergreen.caVolumes" -}}
{{- if and (not .Values.database.bundled) .Values.database.caSecret }}
- name: database-ca
  secret: {secretName: {{ .Values.database.caSecret }}, defaultMode: 0444, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- if and (not .Values.nats.bundled) .Values.nats.caSecret }}
- name: nats-ca
  secret: {secretName: {{ .Values.nats.caSecret }}, defaultMode: 0444, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- end }}

{{/* Who may read metrics. (list $ port) */}}
{{- define "evergreen.fromMetrics" }}
    - ports: [{port: {{ index . 1 }}, protocol: TCP}]
      {{- with (index . 0).Values.networkPolicy.metricsFrom }}
      from: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}

{{/* A container of the migration Job. (dict "root" $ "args" …) */}}
{{- define "evergreen.migrateContainer" }}
image: {{ include "evergreen.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: {{ toJson .args }}
securityContext: {{- include "evergreen.containerSecurity" .root | nindent 2 }}
resources: {requests: {cpu: 50m, memory: 96Mi}, limits: {memory: 256Mi}}
env:
  - name: EVERGREEN_ADMIN_DATABASE_URL
    value: {{ include "evergreen.databaseUrl" (list .root .root.Values.database.admin.user "postgres") | quote }}
  - {name: EVERGREEN_ADMIN_DATABASE_PASSWORD_FILE, value: /etc/evergreen/database-admin/password}
  - {name: EVERGREEN_ROLE_SECRETS, value: /etc/evergreen/secrets}
  - name: EVERGREEN_MIGRATE_DATABASE_URL
    value: {{ include "evergreen.databaseUrl" (list .root "evergreen_migrator" .root.Values.database.name) | quote }}
  - {name: EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE, value: /etc/evergreen/secrets/postgres_migrator}
volumeMounts:
  - {name: inside, mountPath: /run/evergreen, readOnly: true}
  - {name: secrets, mountPath: /etc/evergreen/secrets, readOnly: true}
  - {name: database-admin, mountPath: /etc/evergreen/database-admin, readOnly: true}
  {{- include "evergreen.caMounts" .root | nindent 2 }}
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* What generated secrets have in common. */}}
{{- define "evergreen.keep" }}
  annotations: {helm.sh/resource-policy: keep}
{{- end }}
{{- define "evergreen.kept" }}
{{- $found := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) }}
{{- if $found }}{{ index $found.data (index . 2) | default "" | b64dec }}{{ end -}}
{{- end }}
{{- define "evergreen.password" }}
{{- include "evergreen.kept" . | default (randAlphaNum 40) -}}
{{- end }}

