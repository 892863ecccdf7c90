{{/* FIPS mode and the algorithms of new values (docs/fips.md), for every container that runs a command of ours. */}}

{{- define "evergreen.fipsEnv" -}}
- {name: EVERGREEN_FIPS, value: {{ ternary "required" "off" .Values.fips.required | quote }}}
- {name: EVERGREEN_SUITES, value: {{ .Values.fips.suites }}}
{{- with .Values.fips.sha256 }}
- {name: EVERGREEN_FIPS_SHA256, value: {{ . | quote }}}
{{- end }}
{{- if .Values.fips.module }}
- {name: EVERGREEN_FIPS_MODULES, value: /opt/fips}
{{- end }}
{{- end }}

{{/* A module of the operator's own. */}}
{{- define "evergreen.fipsMounts" -}}
{{- if and .Values.fips.required .Values.fips.module }}
- {name: fips-module, mountPath: /opt/fips, readOnly: true}
{{- end }}
{{- end }}

{{- define "evergreen.fipsVolumes" -}}
{{- if and .Values.fips.required .Values.fips.module }}
- name: fips-module
  {{- toYaml .Values.fips.module | nindent 2 }}
{{- end }}
{{- end }}
