{{/* Annotations of an object that lives while the release is removed: its weight, and when it goes. */}}
{{- define "cachalot.hook" -}}
helm.sh/hook: pre-delete
helm.sh/hook-weight: {{ index . 0 | quote }}
helm.sh/hook-delete-policy: {{ index . 1 }}
{{- end }}

{{/* A pod that works on the node itself, in its network, where the mirror must answer. */}}
{{- define "cachalot.machine" -}}
{{ include "cachalot.pod" . }}
hostNetwork: true
terminationGracePeriodSeconds: 5
{{- with .Values.nodes.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodes.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodes.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  seccompProfile:
    type: RuntimeDefault
volumes:
  # containerd's configuration says where hosts.toml files belong, and the rest says whose machine this is.
  - name: root
    hostPath: { path: /, type: Directory }
  - name: etc
    hostPath: { path: /etc, type: Directory }
{{- end }}

{{/* Files of containerd are root's; more than to be root is not needed. */}}
{{- define "cachalot.onMachine" -}}
terminationMessagePolicy: FallbackToLogsOnError
resources: {{- toYaml .Values.nodes.resources | nindent 2 }}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  # Where SELinux watches, an ordinary container may not touch the node's files.
  seLinuxOptions: { type: spc_t }
  {{- include "cachalot.noRights" . | nindent 2 }}
volumeMounts:
  - name: root
    mountPath: /host
    readOnly: true
  - name: etc
    mountPath: /host/etc
{{- end }}
