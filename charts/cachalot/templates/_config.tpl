{{/* The mirrors' cachalot.toml: what was written in config, and the tables that other values stand for. */}}
{{- define "cachalot.config" -}}
{{- .Values.config }}
{{- with .Values.registrySecrets }}
{{- if regexMatch "(?m)^\\s*\\[credentials\\]" $.Values.config }}
{{- fail "config has a table [credentials], and registrySecrets stands for one: put /secrets/NAME/.dockerconfigjson into its docker_config, and NAME into secrets" }}
{{- end }}

[credentials]
docker_config = [{{ range $at, $name := . }}{{ if $at }}, {{ end }}{{ printf "/secrets/%s/.dockerconfigjson" $name | quote }}{{ end }}]
{{- end }}
{{- range $name, $list := .Values.warm }}

[warm.{{ $name | quote }}]
images = {{ $list.images | toJson }}
{{- with $list.interval }}
interval = {{ . | quote }}
{{- end }}
{{- with $list.platforms }}
platforms = {{ . | toJson }}
{{- end }}
{{- if hasKey $list "referrers" }}
referrers = {{ $list.referrers }}
{{- end }}
{{- end }}
{{ end }}

{{/* Where the node caches find the central mirrors. A name will do: they are pods, if on the node's network. */}}
{{- define "cachalot.central" -}}
{{- .Values.nodeCache.central | default (printf "http://%s.%s.svc:%v" (include "cachalot.fullname" .) .Release.Namespace .Values.service.port) }}
{{- end }}

{{/* The node caches' cachalot.toml. Nodes ask the central mirrors and the registries themselves when a node cache fails. */}}
{{- define "cachalot.nodeConfig" -}}
{{- .Values.nodeCache.config }}
{{- range .Values.nodeCache.upstreams }}

[upstreams.{{ . | quote }}]
endpoints = [{ url = {{ include "cachalot.central" $ | quote }}, mirror = true }]
{{- end }}
{{ end }}

{{/* The mirrors' addresses as nodes reach them, as JSON. */}}
{{- define "cachalot.addresses" -}}
{{- $addresses := .Values.nodes.mirrors }}
{{- if not $addresses }}
{{- if .Values.nodeCache.enabled }}
{{- $addresses = append $addresses (printf "http://127.0.0.1:%v" .Values.nodeCache.port) }}
{{- end }}
{{- if and (eq .Values.service.type "NodePort") .Values.service.nodePort }}
{{- $addresses = append $addresses (printf "http://$(HOST_IP):%v" .Values.service.nodePort) }}
{{- else if .Values.service.clusterIP }}
{{- $addresses = append $addresses (printf "http://%s:%v" (ternary (printf "[%s]" .Values.service.clusterIP) .Values.service.clusterIP (contains ":" .Values.service.clusterIP)) .Values.service.port) }}
{{- end }}
{{- end }}
{{- if not $addresses }}
{{- fail "nodes.enabled needs addresses that nodes can reach: nodes.mirrors, service.clusterIP, or service.type NodePort with service.nodePort" }}
{{- end }}
{{- range $addresses }}
{{- if regexMatch "^https?://[^/]*(\\.svc|\\.cluster\\.local)[.:]?" . }}
{{- fail (printf "nodes.mirrors has %s, a name inside the cluster, which nodes can't look up: give an address" .) }}
{{- end }}
{{- end }}
{{- toJson $addresses }}
{{- end }}
