{{- define "cachalot.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{/* 43 characters: a StatefulSet's pods carry its name, a number and a hash of up to 11 characters in a label, and other objects
have endings of up to 9. */}}
{{- define "cachalot.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 43 | trimSuffix "-" }}
{{- else if contains (include "cachalot.name" .) .Release.Name }}
{{- .Release.Name | trunc 43 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "cachalot.name" .) | trunc 43 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* What each object of the release is known by. */}}
{{- define "cachalot.release" -}}
app.kubernetes.io/name: {{ include "cachalot.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The mirrors' pods alone. */}}
{{- define "cachalot.selector" -}}
{{ include "cachalot.release" . }}
app.kubernetes.io/component: mirror
{{- end }}

{{- define "cachalot.labels" -}}
{{ include "cachalot.release" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "cachalot.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}
{{- end }}
