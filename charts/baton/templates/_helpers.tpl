{{- define "baton.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end -}}

{{- define "baton.operator" -}}
{{ include "baton.name" . | trunc 54 | trimSuffix "-" }}-operator
{{- end -}}

{{- define "baton.selector" -}}
app.kubernetes.io/name: baton
app.kubernetes.io/instance: {{ .Release.Name }}
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

{{/* The operator's settings file: what the chart knows, then `settings` over it. */}}
{{- define "baton.settings" -}}
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
