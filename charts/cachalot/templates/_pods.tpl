{{/* What every pod of this chart has in common: nothing of it talks to Kubernetes, unless it says so itself. */}}
{{- define "cachalot.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- end }}

{{/* The rights of pods that need none. */}}
{{- define "cachalot.nobody" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "cachalot.noRights" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* None of these asks an upstream: a mirror whose upstream is down still serves what it holds. Takes a list: the root, and the
address to ask at, if it is not the pod's. */}}
{{- define "cachalot.probes" -}}
{{- $root := index . 0 -}}
{{- $host := index . 1 -}}
startupProbe:
  httpGet: { path: /readyz, port: admin{{ with $host }}, host: {{ . | quote }}{{ end }} }
  periodSeconds: 2
  failureThreshold: {{ div (add (int $root.Values.startupSeconds) 1) 2 }}
livenessProbe:
  httpGet: { path: /livez, port: admin{{ with $host }}, host: {{ . | quote }}{{ end }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: admin{{ with $host }}, host: {{ . | quote }}{{ end }} }
  periodSeconds: 5
  timeoutSeconds: 5
{{- end }}

{{/* A container that waits for the end. */}}
{{- define "cachalot.pause" -}}
- name: pause
  image: {{ include "cachalot.image" . | quote }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  args: [node, pause]
  securityContext: {{- include "cachalot.noRights" . | nindent 4 }}
{{- end }}

{{/* Labels of a pod that is no mirror, by what it is. */}}
{{- define "cachalot.component" -}}
{{- $root := index . 0 -}}
{{ include "cachalot.release" $root }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* The mirrors' environment, which goes before their cachalot.toml. */}}
{{- define "cachalot.environment" -}}
- name: CACHALOT_CONFIG
  value: /etc/cachalot/cachalot.toml
- name: CACHALOT_LISTEN
  value: {{ printf "%s:5050" .Values.listenAddress | quote }}
- name: CACHALOT_ADMIN_LISTEN
  value: {{ printf "%s:%v" .Values.listenAddress .Values.admin.port | quote }}
- name: CACHALOT_DATA
  value: /data
{{- if .Values.capacity }}
- name: CACHALOT_CAPACITY
  value: {{ .Values.capacity | quote }}
{{- else if not .Values.persistence.enabled }}
- name: CACHALOT_CAPACITY
  value: {{ .Values.persistence.emptyDir.capacity | quote }}
{{- end }}
- name: CACHALOT_LOG
  value: {{ .Values.log.level | quote }}
{{- if .Values.offline }}
- name: CACHALOT_OFFLINE
  value: "true"
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}
