{{- define "runs-gateway.name" -}}
{{- if .Values.fullnameOverride }}{{ .Values.fullnameOverride }}
{{- else }}{{ $name := default .Chart.Name .Values.nameOverride }}{{ ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) }}
{{- end }}
{{- end }}

{{- define "runs-gateway.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "runs-gateway.labels" -}}
{{ include "runs-gateway.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "runs-gateway.metadata" -}}
name: {{ include "runs-gateway.name" . }}
namespace: {{ .Release.Namespace }}
labels:
  {{- include "runs-gateway.labels" . | nindent 2 }}
{{- end }}

{{- define "runs-gateway.weights" -}}
{{ include "runs-gateway.name" . }}-weights
{{- end }}
