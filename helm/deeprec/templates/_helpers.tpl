{{- /* Names, labels and the parts that every pod has. */ -}}

{{- define "deeprec.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end -}}

{{- /* The version as a part of a name. */ -}}
{{- define "deeprec.version" -}}
{{ .Chart.AppVersion | replace "." "-" | replace "+" "-" | lower }}
{{- end -}}

{{- /* What selectors select by, the same in every version: (dict "root" $ "component" NAME). */ -}}
{{- define "deeprec.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- with .component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
{{- end -}}

{{- define "deeprec.labels" -}}
{{ include "deeprec.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- /* (dict "root" $ "image" .Values.images.NAME) */ -}}
{{- define "deeprec.image" -}}
{{- $name := printf "%s%s" .root.Values.images.registry .image.name -}}
{{- if .image.digest }}{{ $name }}@{{ .image.digest }}{{ else }}{{ $name }}:{{ .image.tag | default .root.Chart.AppVersion }}{{ end -}}
{{- end -}}

{{- /* Pod Security "restricted", for a pod; KServe takes it from an InferenceService, not from a runtime. */ -}}
{{- define "deeprec.podSecurity" -}}
runAsNonRoot: true
{{- with .Values.security.user }}
runAsUser: {{ . }}
runAsGroup: 0
fsGroup: {{ . }}
{{- end }}
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "deeprec.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "deeprec.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "deeprec.placement" -}}
{{- with .Values.placement.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.placement.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- /* (dict "cpu" … "memory" … "scratch" … "gpus" … "accelerator" …) */ -}}
{{- define "deeprec.resources" -}}
{{- range $kind := list "requests" "limits" }}
{{ $kind }}:
  cpu: {{ $.cpu | quote }}
  memory: {{ $.memory }}
  {{- with $.scratch }}
  ephemeral-storage: {{ . }}
  {{- end }}
  {{- if $.gpus }}
  {{ $.accelerator }}: {{ $.gpus | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- /* Where things are, and credentials by reference. */ -}}
{{- define "deeprec.environment" -}}
- name: AWS_REGION
  value: {{ .Values.store.region | quote }}
{{- with .Values.store.endpoint }}
- name: AWS_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- if .Values.store.secret }}
{{- range list "AWS_ACCESS_KEY_ID" "AWS_SECRET_ACCESS_KEY" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.store.secret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- if .Values.features.secret }}
{{- range list "DEEPREC_DATABASE" "DEEPREC_REDIS" }}
- name: {{ . }}
  valueFrom:
    secretKeyRef:
      name: {{ $.Values.features.secret }}
      key: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* The configuration that all servers read. */ -}}
{{- define "deeprec.config" -}}
{{- $serving := dict "host" "0.0.0.0" "port" 8080 "admin_port" 8081 "log_format" "json" "drain_seconds" 10 "poll_seconds" 30 -}}
{{- $tree := dict "serving" $serving -}}
{{- if .Values.features.secret -}}
{{- $_ := set $tree "features" (dict "place" "cluster" "database" "${DEEPREC_DATABASE}" "redis" "${DEEPREC_REDIS}" "offline" .Values.features.offline) -}}
{{- end -}}
{{- if .Values.events.enabled -}}
{{- $_ := set $serving "doors" (dict "events" false) -}}
{{- end -}}
{{- if .Values.serving.logClaim -}}
{{- $_ := set $serving "log" (dict "path" "/var/log/deeprec/requests") -}}
{{- end -}}
{{- toYaml (mustMergeOverwrite $tree (deepCopy .Values.config)) -}}
{{- end -}}

{{- define "deeprec.configName" -}}
{{ include "deeprec.fullname" . }}-{{ include "deeprec.version" . }}-{{ include "deeprec.config" . | sha256sum | trunc 8 }}
{{- end -}}

{{- /* Ports and probes of DeepRec's own servers, as `deeprec serve … --print-pod` says them. */ -}}
{{- define "deeprec.ports" -}}
{{- $serving := (include "deeprec.config" . | fromYaml).serving -}}
- name: http
  containerPort: {{ $serving.port }}
{{- if ne $serving.admin_port nil }}
- name: admin
  containerPort: {{ $serving.admin_port }}
{{- end }}
{{- end -}}

{{- define "deeprec.probes" -}}
{{- range $name, $failures := dict "startup" 360 "readiness" 1 "liveness" 3 }}
{{ $name }}Probe:
  httpGet:
    path: /v2/health/{{ get (dict "startup" "started" "readiness" "ready" "liveness" "live") $name }}
    port: http
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: {{ $failures }}
{{- end }}
{{- end -}}

{{- /* Drain, the largest deadline, and closing, as `--print-pod` adds them up. */ -}}
{{- define "deeprec.grace" -}}
{{- $serving := (include "deeprec.config" . | fromYaml).serving -}}
{{- $deadline := $serving.max_deadline_ms | default 30000 -}}
{{- $answer := $serving.stop_seconds | default (addf (divf (addf $deadline ($serving.grace_ms | default 2000)) 1000) 5) -}}
{{- ceil (addf $serving.drain_seconds $answer 15) -}}
{{- end -}}

{{- /* A container of DeepRec's image that serves: (dict "root" $ "name" … "args" (list …) "cpu" … "memory" … "scratch" …) */ -}}
{{- define "deeprec.server" -}}
- name: {{ .name }}
  image: {{ include "deeprec.image" (dict "root" .root "image" .root.Values.images.serve) }}
  imagePullPolicy: {{ .root.Values.images.pullPolicy }}
  args:
    {{- toYaml .args | nindent 4 }}
  env:
    {{- include "deeprec.environment" .root | nindent 4 }}
    {{- with .env }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    {{- include "deeprec.ports" .root | nindent 4 }}
  {{- include "deeprec.probes" .root | trim | nindent 2 }}
  resources:
    {{- include "deeprec.resources" . | trim | nindent 4 }}
  securityContext:
    {{- include "deeprec.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - name: config
      mountPath: /etc/deeprec
      readOnly: true
    - name: home
      mountPath: /home/deeprec
    {{- with .mounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}

{{- /* (dict "root" $ "scratch" …) */ -}}
{{- define "deeprec.volumes" -}}
- name: config
  configMap:
    name: {{ include "deeprec.configName" .root }}
- name: home
  emptyDir:
    {{- if .scratch }}
    sizeLimit: {{ .scratch }}
    {{- else }} {}
    {{- end }}
{{- end -}}

{{- /* The claim that requests are logged to, and where it is mounted: (dict "root" $ "readOnly" …) */ -}}
{{- define "deeprec.logVolume" -}}
{{- with .Values.serving.logClaim }}
- name: requests
  persistentVolumeClaim:
    claimName: {{ . }}
{{- end }}
{{- end -}}

{{- define "deeprec.logMount" -}}
- name: requests
  mountPath: /var/log/deeprec
{{- end -}}

{{- /* Where Prometheus looks, on pods that it finds by annotations. */ -}}
{{- define "deeprec.scrape" -}}
{{- if eq .Values.monitoring.kind "annotations" }}
prometheus.io/scrape: "true"
prometheus.io/path: /metrics
prometheus.io/port: {{ (include "deeprec.config" . | fromYaml).serving.admin_port | default 8080 | quote }}
{{- end }}
{{- end -}}
