{{/* Names, and what several kinds of objects share. */}}

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

{{/* What starts a service. An image of 0.1, which an upgrade or a rollback may pin, knows only the service's name.
(dict "root" $ "context" …) */}}
{{- define "evergreen.serve" -}}
{{- $image := .root.Values.image }}
{{- $release := $image.tag | default (ternary "" .root.Chart.AppVersion (not (empty $image.digest))) }}
{{- if hasPrefix "0.1." (trimPrefix "v" $release) }}{{ toJson (list .context) }}{{ else }}{{ toJson (list "serve" .context) }}{{ end -}}
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
{{- define "evergreen.secret.authorities" -}}{{ include "evergreen.name" . }}-ca{{- end }}
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

{{/* Whose certificates cert-manager makes, "inside" and "gateway". */}}
{{- define "evergreen.byCertManager" -}}
{{- if .Values.certManager.enabled }}{{ if not .Values.insideTls.existingSecret }}inside{{ end }} {{ if not .Values.gateway.tls.existingSecret }}gateway{{ end }}{{ end -}}
{{- end }}

{{/* Whose certificates the chart makes and its CronJob renews. */}}
{{- define "evergreen.renewed" -}}
{{- if not .Values.certManager.enabled }}{{ if not .Values.insideTls.existingSecret }}inside{{ end }}{{ if not .Values.gateway.tls.existingSecret }} gateway{{ end }}{{ end -}}
{{- end }}

{{/* Whether devices have to be given the CA of the gateway's certificate: a public one they know. */}}
{{- define "evergreen.ownCa" -}}
{{- if not (or .Values.gateway.tls.existingSecret (and .Values.certManager.enabled .Values.certManager.issuerRef.name)) }}yes{{ end -}}
{{- end }}

{{/* Who has a certificate inside the walls. */}}
{{- define "evergreen.parties" -}}
{{ include "evergreen.contexts" . }} gateway postgres nats
{{- end }}

{{/* The names of one of them; integrators and its own cluster reach NATS by more. (list $ party) */}}
{{- define "evergreen.insideHosts" -}}
{{- $root := index . 0 }}{{- $party := index . 1 }}
{{- $address := printf "%s-%s" (include "evergreen.name" $root) $party }}
{{- $hosts := list $party $address (printf "%s.%s.svc" $address $root.Release.Namespace) }}
{{- if eq $party "nats" }}{{ $hosts = concat $hosts (list (printf "*.%s.%s.svc" $address $root.Release.Namespace) (include "evergreen.eventsHost" $root)) }}{{ end -}}
{{ $hosts | compact | uniq | join " " }}
{{- end }}

{{/* The hosts of the public address, and of those of before. */}}
{{- define "evergreen.publicHosts" -}}
{{- $hosts := list (include "evergreen.publicHost" .) }}
{{- range .Values.formerPublicUrls }}{{ $hosts = append $hosts (urlParse .).hostname }}{{ end -}}
{{ $hosts | uniq | join " " }}
{{- end }}

{{/* The gateway's, for devices and browsers, and for those in the cluster. */}}
{{- define "evergreen.gatewayHosts" -}}
{{- $address := printf "%s-gateway" (include "evergreen.name" .) -}}
{{ include "evergreen.publicHosts" . }} {{ list $address (printf "%s.%s.svc" $address .Release.Namespace) | join " " }}
{{- end }}

{{/* The certificate of a party inside the walls, as files of one volume. (list $ name) */}}
{{- define "evergreen.insideVolume" -}}
{{- $root := index . 0 }}{{- $name := index . 1 -}}
name: inside
secret:
  {{- if contains "inside" (include "evergreen.byCertManager" $root) }}
  secretName: {{ include "evergreen.secret.inside" $root }}-{{ $name }}
  defaultMode: 0440
  items: [{key: ca.crt, path: ca.crt}, {key: tls.crt, path: tls.crt}, {key: tls.key, path: tls.key}]
  {{- else }}
  secretName: {{ include "evergreen.secret.inside" $root }}
  defaultMode: 0440
  items:
    - {key: ca.crt, path: ca.crt}
    - {key: {{ $name }}.crt, path: tls.crt}
    - {key: {{ $name }}.key, path: tls.key}
  {{- end }}
{{- end }}

{{/* The CA inside the walls alone. */}}
{{- define "evergreen.insideCaVolume" -}}
name: inside
secret:
  secretName: {{ include "evergreen.secret.inside" . }}{{ if contains "inside" (include "evergreen.byCertManager" .) }}-gateway{{ end }}
  defaultMode: 0440
  items: [{key: ca.crt, path: ca.crt}]
{{- end }}

{{/* How a server's command begins that is to take over new certificates. (list $ "the process's name") */}}
{{- define "evergreen.reloaded" -}}
- sh
- -c
- |- {{- (index . 0).Files.Get "files/reloaded.sh" | nindent 2 }}
- reloaded
- {{ index . 1 }}
{{- end }}

{{/* Objects whose kind must be known to the cluster. (list $ "group/version/Kind" "value" "what brings it") */}}
{{- define "evergreen.needs" -}}
{{- if not ((index . 0).Capabilities.APIVersions.Has (index . 1)) }}
{{- fail (printf "%s: the cluster has no %s. Install %s first, or leave the value out. (Without a cluster, as `helm template`: --api-versions %s)" (index . 2) (index . 1) (index . 3) (index . 1)) }}
{{- end }}
{{- end }}

{{/* Requests and limits; without a request for processor time, one by profile.
(dict "root" $ "of" resources "eval" "25m" "production" "100m") */}}
{{- define "evergreen.resources" -}}
{{- $resources := deepCopy .of }}
{{- $requests := $resources.requests | default dict }}
{{- if not $requests.cpu }}{{ $_ := set $requests "cpu" (ternary .production .eval (eq .root.Values.profile "production")) }}{{ end }}
{{- $_ := set $resources "requests" $requests }}
{{- toYaml $resources -}}
{{- end }}

{{/* What Secrets hold now that pods read at their start and never again: when it differs, an upgrade makes new pods.
Certificates do not belong here, running pods take them over. (list $ secret…) */}}
{{- define "evergreen.secretsOf" -}}
{{- $root := index . 0 }}
{{- range $secret := rest . }}
{{- $found := lookup "v1" "Secret" $root.Release.Namespace $secret }}
{{- if $found }}{{ toJson $found.data }}{{ end }}
{{- end }}
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
      from:
        - podSelector:
            matchLabels: {{- include "evergreen.selector" (dict "root" (index $ 0) "component" "operator") | nindent 14 }}
        {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}

{{/* A container of the migration Job. (dict "root" $ "args" … "anyKey" whether the database may have another master key) */}}
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
  {{- if not .anyKey }}
  # Compared with the database's before anything is changed.
  - {name: EVERGREEN_MASTER_KEY_FILE, value: /etc/evergreen/secrets/master_key}
  {{- end }}
  - name: EVERGREEN_MIGRATE_DATABASE_URL
    value: {{ include "evergreen.databaseUrl" (list .root "evergreen_migrator" .root.Values.database.name) | quote }}
  - {name: EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE, value: /etc/evergreen/secrets/postgres_migrator}
  {{- include "evergreen.fipsEnv" .root | nindent 2 }}
volumeMounts:
  - {name: inside, mountPath: /run/evergreen, readOnly: true}
  - {name: secrets, mountPath: /etc/evergreen/secrets, readOnly: true}
  - {name: database-admin, mountPath: /etc/evergreen/database-admin, readOnly: true}
  {{- include "evergreen.caMounts" .root | nindent 2 }}
  {{- include "evergreen.fipsMounts" .root | nindent 2 }}
  - {name: tmp, mountPath: /tmp}
{{- end }}

{{/* What a Secret has that is made once: Helm makes it before all else, and leaves it alone ever after. */}}
{{- define "evergreen.once" }}
  annotations:
    helm.sh/hook: pre-install,pre-upgrade
    helm.sh/hook-weight: "-20"
    helm.sh/resource-policy: keep
{{- end }}

{{/* What generated secrets have in common. */}}
{{- define "evergreen.keep" }}
  annotations: {helm.sh/resource-policy: keep}
{{- end }}
{{/* A value of a Secret that is there; empty when it has to be made. (list . $secret $key) */}}
{{- define "evergreen.kept" }}
{{- $found := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) }}
{{- if $found }}
{{- $data := $found.data | default dict }}{{- $key := index . 2 }}
{{- $text := index $data $key | default "" | b64dec }}
{{- if and (not (trim $text)) (or (hasKey $data $key) (not $data)) }}
{{- fail (printf "the Secret %s has nothing in %s. Put the value back, from a backup or a copy; none is made in its place" (index . 1) $key) }}
{{- end }}
{{- $text }}
{{- end -}}
{{- end }}
{{- define "evergreen.password" }}
{{- include "evergreen.kept" . | default (randAlphaNum 40) -}}
{{- end }}


{{/* The chart's own Secrets, by the values that would name others. */}}
{{- define "evergreen.ownSecrets" -}}
{{- $name := include "evergreen.name" . }}
{{- $own := dict }}
{{- if not .Values.admin.existingSecret }}{{ $_ := set $own "admin" (printf "%s-admin" $name) }}{{ end }}
{{- if not .Values.masterKey.existingSecret }}{{ $_ := set $own "masterKey" (printf "%s-master-key" $name) }}{{ end }}
{{- if contains "inside" (include "evergreen.renewed" .) }}{{ $_ := set $own "insideTls" (printf "%s-inside" $name) }}{{ end }}
{{- if contains "gateway" (include "evergreen.renewed" .) }}{{ $_ := set $own "gateway.tls" (printf "%s-gateway-tls" $name) }}{{ end }}
{{- if not .Values.database.admin.existingSecret }}{{ $_ := set $own "database.admin" (printf "%s-database-admin" $name) }}{{ end }}
{{- if not .Values.database.migrator.existingSecret }}{{ $_ := set $own "database.migrator" (printf "%s-database-migrator" $name) }}{{ end }}
{{- if not .Values.database.services.existingSecret }}{{ $_ := set $own "database.services" (printf "%s-database-services" $name) }}{{ end }}
{{- if not .Values.nats.existingSecret }}{{ $_ := set $own "nats" (printf "%s-nats" $name) }}{{ end }}
{{- toYaml $own }}
{{- end }}

{{/*
Refuses to make a secret in the place of one that is in use. Whether there is one, only a cluster can tell: `helm
template` and Argo CD render without, and would make new ones each time.
*/}}
{{- define "evergreen.checkSecrets" -}}
{{- $own := fromYaml (include "evergreen.ownSecrets" .) }}
{{- $make := eq (toString .Values.generateSecrets) "true" }}
{{- if lookup "v1" "Secret" .Release.Namespace "" }}
{{- range $value, $secret := $own }}
{{- if not (lookup "v1" "Secret" $.Release.Namespace $secret) }}
{{- if eq (toString $.Values.generateSecrets) "false" }}
{{- fail (printf "generateSecrets is false and there is no Secret %s: give %s.existingSecret" $secret $value) }}
{{- end }}
{{- if and $.Release.IsUpgrade (or (eq $value "masterKey") (not $make)) }}
{{- fail (printf "the Secret %s of this release is gone, and a new one would not be the one in use. Put it back, from a backup or a copy%s" $secret (ternary ": the database's private keys open with its own master key only" "; or say generateSecrets=true to have a new one made" (eq $value "masterKey"))) }}
{{- end }}
{{- if and (eq $value "masterKey") $.Values.database.bundled (lookup "v1" "PersistentVolumeClaim" $.Release.Namespace (printf "data-%s-postgres-0" (include "evergreen.name" $))) }}
{{- fail (printf "the volume data-%s-postgres-0 holds a database, and the Secret %s with its master key is gone. Put the key back, from a backup or a copy; or delete the volume to begin anew" (include "evergreen.name" $) $secret) }}
{{- end }}
{{- end }}
{{- end }}
{{- $secret := include "evergreen.secret.masterKey" . }}
{{- with lookup "v1" "Secret" .Release.Namespace $secret }}
{{- if not (regexMatch "^[A-Za-z0-9+/]{43}=$" (index (.data | default dict) "master_key" | default "" | b64dec | trim)) }}
{{- fail (printf "the Secret %s holds no master key in master_key (32 bytes, base64). The database's private keys open with its own key only: put it back, from a backup or a copy" $secret) }}
{{- end }}
{{- end }}
{{- else if and $own (not $make) }}
{{- fail (printf "Helm cannot see here which Secrets there are (helm template, Argo CD, --dry-run=client), and new ones must not take their places. Give each with existingSecret (%s), use helm install and upgrade (--dry-run=server), or say generateSecrets=true to look at what would be made, never to apply it over an installation" (keys $own | sortAlpha | join ", ")) }}
{{- end }}
{{- end }}
