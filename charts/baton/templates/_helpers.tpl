{{/* Also a Service's: without dots, and from a letter on. */}}
{{- define "baton.name" -}}
{{- $release := .Release.Name | replace "." "-" }}
{{- if regexMatch "^[0-9]" $release }}{{ .Chart.Name }}-{{ $release }}
{{- else if contains .Chart.Name $release }}{{ $release }}{{ else }}{{ $release }}-{{ .Chart.Name }}{{ end -}}
{{- end -}}

{{- define "baton.operator" -}}
{{ include "baton.name" . | trunc 54 | trimSuffix "-" }}-operator
{{- end -}}

{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "baton.labels" -}}
{{ include "baton.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "baton.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}{{ .Values.serviceAccount.name | default (include "baton.operator" .) }}
{{- else }}{{ .Values.serviceAccount.name | default "default" }}{{ end -}}
{{- end -}}

{{/* An image's whole name, from (dict "root" $ "image" .Values.images.NAME). */}}
{{- define "baton.image" -}}
{{- with .root.Values.images.registry }}{{ trimSuffix "/" . }}/{{ end }}{{ .image.repository }}
{{- if .image.digest }}@{{ .image.digest }}{{ else }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{/* The namespaces whose Models are served, as a JSON list; empty means all. */}}
{{- define "baton.namespaces" -}}
{{- if eq .Values.scope "cluster" }}{{ .Values.watchNamespaces | toJson }}
{{- else }}{{ .Values.watchNamespaces | default (list .Release.Namespace) | uniq | toJson }}{{ end -}}
{{- end -}}

{{/* Ours win: from (list OURS GIVEN), OURS as YAML. */}}
{{- define "baton.merged" -}}
{{ mustMerge (index . 0 | fromYaml) (deepCopy (index . 1)) | toYaml }}
{{- end -}}

{{/* Settings that other parts of the chart rely on, and what says them. */}}
{{- define "baton.fixed" -}}
prefill_image: images.prefill
decode_image: images.decode
gateway_image: images.gateway
image_pull_policy: images.pullPolicy
image_pull_secrets: images.pullSecrets
namespace: the release's namespace
watch_namespaces: watchNamespaces
host: the chart (probes and Service need it)
port: the chart (probes and Service need it)
service_account_dir: the chart
{{- end -}}

{{/* The operator's settings file: what the chart knows, and `settings` beside it. */}}
{{- define "baton.settings" -}}
{{- range $name, $by := include "baton.fixed" . | fromYaml }}
{{- if hasKey $.Values.settings $name }}{{ fail (printf "settings.%s is set by %s: leave it out" $name $by) }}{{ end }}
{{- end }}
{{- $leader := .Values.settings.leader | default dict }}
{{- if not (kindIs "map" $leader) }}{{ fail "settings.leader is not a mapping: write it as `field: value` pairs" }}{{ end }}
{{- if hasKey $leader "lease_name" }}{{ fail "settings.leader.lease_name is set by the chart (rights are for that name): leave it out" }}{{ end }}
{{- if and (eq (toString $leader.enabled) "false") (gt (int .Values.replicas) 1) }}
{{- fail "settings.leader.enabled false lets every replica work at once: use replicas 1, or leave it out" }}
{{- end }}
{{- $given := dict
  "prefill_image" (include "baton.image" (dict "root" . "image" .Values.images.prefill))
  "decode_image" (include "baton.image" (dict "root" . "image" .Values.images.decode))
  "gateway_image" (include "baton.image" (dict "root" . "image" .Values.images.gateway))
  "image_pull_policy" .Values.images.pullPolicy
  "image_pull_secrets" .Values.images.pullSecrets
  "namespace" .Release.Namespace
  "watch_namespaces" (include "baton.namespaces" . | fromJsonArray)
  "leader" (dict "lease_name" (include "baton.operator" .))
-}}
{{ mustMergeOverwrite $given (deepCopy .Values.settings) | toPrettyJson }}
{{- end -}}

{{- define "baton.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "baton.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* What `helm test` may do, and where in its order an object stands. */}}
{{- define "baton.checkRules" -}}
- apiGroups: [baton.dev]
  resources: [models]
  verbs: [list]
- apiGroups: [""]
  resources: [secrets]
  verbs: [get]
{{- end }}
{{- define "baton.hook" -}}
helm.sh/hook: test
helm.sh/hook-weight: {{ . | quote }}
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end }}
