{{/* What pods for commands have in common: the operator's, backups and restores. All secrets are in them. */}}

{{- define "evergreen.operatorEnv" -}}
- {name: EVERGREEN_HOME, value: /etc/evergreen}
- {name: PUBLIC_URL, value: {{ .Values.publicUrl | quote }}}
- {name: FORMER_PUBLIC_URLS, value: {{ join "," .Values.formerPublicUrls | quote }}}
- {name: TRUSTED_PROXIES, value: {{ .Values.gateway.trustedProxies | quote }}}
- {name: EVERGREEN_CONNECT, value: "{{ include "evergreen.name" . }}-gateway:{{ .Values.gateway.service.port }}"}
- name: EVERGREEN_MIGRATE_DATABASE_URL
  value: {{ include "evergreen.databaseUrl" (list . "evergreen_migrator" .Values.database.name) | quote }}
- {name: EVERGREEN_MIGRATE_DATABASE_PASSWORD_FILE, value: /etc/evergreen/secrets/postgres_migrator}
- {name: EVERGREEN_ROLE_SECRETS, value: /etc/evergreen/secrets}
- {name: EVERGREEN_MASTER_KEY_FILE, value: /etc/evergreen/secrets/master_key}
- {name: EVERGREEN_NATS_URL, value: {{ include "evergreen.natsUrl" . | quote }}}
- {name: EVERGREEN_NATS_CA_FILE, value: {{ include "evergreen.natsCa" . }}}
- {name: EVERGREEN_NATS_USER, value: audit}
- {name: EVERGREEN_NATS_PASSWORD_FILE, value: /etc/evergreen/secrets/nats_audit}
- {name: EVERGREEN_OPS_TARGET, value: "{{ include "evergreen.name" . }}-{context}:9464"}
- {name: EVERGREEN_GATEWAY_MONITOR_URL, value: "http://{{ include "evergreen.name" . }}-gateway-metrics:9464"}
{{- if .Values.nats.bundled }}
- {name: EVERGREEN_NATS_MONITOR_URL, value: "http://{{ include "evergreen.name" . }}-nats:8222"}
{{- end }}
{{ include "evergreen.fipsEnv" . }}
{{- end }}

{{- define "evergreen.operatorMounts" -}}
- {name: inside, mountPath: /run/evergreen, readOnly: true}
- {name: secrets, mountPath: /etc/evergreen/secrets, readOnly: true}
- {name: certificate, mountPath: /etc/evergreen/tls, readOnly: true}
{{- include "evergreen.caMounts" . | nindent 0 }}
{{- include "evergreen.fipsMounts" . | nindent 0 }}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "evergreen.operatorVolumes" -}}
- {{- include "evergreen.insideCaVolume" . | nindent 2 }}
- name: secrets
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "evergreen.secret.databaseServices" . }}
          items:
            {{- range $context := splitList " " (include "evergreen.contexts" .) }}
            - {key: {{ $context }}, path: postgres_{{ $context }}}
            {{- end }}
      - secret:
          name: {{ include "evergreen.secret.migrator" . }}
          items: [{key: password, path: postgres_migrator}]
      - secret:
          name: {{ include "evergreen.secret.nats" . }}
          items: [{key: audit, path: nats_audit}, {key: operator, path: nats_operator}]
      - secret:
          name: {{ include "evergreen.secret.masterKey" . }}
          items: [{key: master_key, path: master_key}]
      - secret:
          name: {{ include "evergreen.secret.admin" . }}
          items: [{key: password, path: admin_password}, {key: enrollment-secret, path: enrollment_secret}]
- name: certificate
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "evergreen.secret.gatewayTls" . }}
          items: [{key: tls.crt, path: server.crt}, {key: tls.key, path: server.key}]
      # A certificate of a public CA comes without it.
      - secret:
          name: {{ include "evergreen.secret.gatewayTls" . }}
          optional: true
          items: [{key: ca.crt, path: ca.crt}]
      # For a backup: where it is restored, the CA goes on signing.
      - secret:
          name: {{ include "evergreen.secret.authorities" . }}
          optional: true
          items: [{key: gateway.key, path: ca.key}]
{{- include "evergreen.caVolumes" . | nindent 0 }}
{{- include "evergreen.fipsVolumes" . | nindent 0 }}
- name: tmp
  emptyDir: {}
{{- end }}

{{/* Whether backups are kept in a volume of the cluster. */}}
{{- define "evergreen.backupVolume" -}}
{{- if and (.Values.backup).enabled (hasPrefix "/" .Values.backup.target) }}yes{{ end -}}
{{- end }}

{{- define "evergreen.backupClaim" -}}
{{- .Values.backup.volume.existingClaim | default (printf "%s-backups" (include "evergreen.name" .)) -}}
{{- end }}

{{/* Where backups are, for `evergreen backup`; the same in backups, restores and the operator's pod. */}}
{{- define "evergreen.backupEnv" -}}
{{- if (.Values.backup).enabled }}
- {name: EVERGREEN_BACKUP_TARGET, value: {{ .Values.backup.target | quote }}}
- {name: EVERGREEN_BACKUP_KEEP, value: {{ .Values.backup.keep | quote }}}
- {name: EVERGREEN_BACKUP_SCHEDULE, value: {{ .Values.backup.every | quote }}}
- {name: EVERGREEN_BACKUP_SECRETS, value: /etc/evergreen/backup}
- {name: EVERGREEN_BACKUP_WORK_DIRECTORY, value: /work}
{{- with .Values.backup.s3.endpoint }}
- {name: EVERGREEN_BACKUP_S3_ENDPOINT, value: {{ . | quote }}}
{{- end }}
{{- with .Values.backup.s3.region }}
- {name: EVERGREEN_BACKUP_S3_REGION, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "evergreen.backupMounts" -}}
{{- if (.Values.backup).enabled }}
- {name: backup-secrets, mountPath: /etc/evergreen/backup, readOnly: true}
- {name: work, mountPath: /work}
{{- if include "evergreen.backupVolume" . }}
- {name: backups, mountPath: /backups}
{{- end }}
{{- end }}
{{- end }}

{{- define "evergreen.backupVolumes" -}}
{{- if (.Values.backup).enabled }}
- name: backup-secrets
  secret: {secretName: {{ .Values.backup.existingSecret }}, defaultMode: 0440}
- name: work
  emptyDir: {sizeLimit: {{ .Values.backup.workSize }}}
{{- if include "evergreen.backupVolume" . }}
- name: backups
  persistentVolumeClaim: {claimName: {{ include "evergreen.backupClaim" . }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "evergreen.checkBackup" -}}
{{- if (.Values.backup).enabled }}
{{- if not .Values.backup.existingSecret }}{{ fail "backup.enabled needs backup.existingSecret: a Secret with recipients (public keys of age or SSH, one a line) or a passphrase, which must be kept elsewhere too" }}{{ end }}
{{- if not (regexMatch "^(/backups(/|$)|s3://[^/]|sftp://[^/])" .Values.backup.target) }}{{ fail (printf "backup.target is %s: give /backups (a volume), s3://BUCKET/PREFIX or sftp://USER@HOST/PATH" .Values.backup.target) }}{{ end }}
{{- if and .Values.backup.command (not (include "evergreen.backupVolume" .)) }}{{ fail "backup.command takes what is in the volume: backup.target must be /backups" }}{{ end }}
{{- with lookup "v1" "Secret" .Release.Namespace .Values.backup.existingSecret }}
{{- $data := .data | default dict }}
{{- if not (or (trim (index $data "recipients" | default "" | b64dec)) (trim (index $data "passphrase" | default "" | b64dec))) }}
{{- fail (printf "the Secret %s has neither recipients nor a passphrase: a backup holds all keys and is always encrypted" .metadata.name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
