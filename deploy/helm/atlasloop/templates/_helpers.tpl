{{- define "atlasloop.fullname" -}}
{{- if contains "atlasloop" .Release.Name }}{{ .Release.Name | trunc 40 | trimSuffix "-" }}{{ else }}{{ printf "%s-atlasloop" .Release.Name | trunc 40 | trimSuffix "-" }}{{ end -}}
{{- end -}}

{{/* Labels that select pods: never change. Argument: dict root component. */}}
{{- define "atlasloop.selector" -}}
app.kubernetes.io/name: atlasloop
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "atlasloop.labels" -}}
{{ include "atlasloop.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/part-of: atlasloop
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version }}
{{- end -}}

{{/* Image of a role. Argument: dict root name. */}}
{{- define "atlasloop.image" -}}
{{- $image := index .root.Values.images .name -}}
{{- $registry := .root.Values.global.imageRegistry | default $image.registry -}}
{{- if not $registry -}}
{{- fail (printf "global.imageRegistry is required: the image %s is built from deploy/docker and lies in your registry" $image.repository) -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s/%s@%s" $registry $image.repository $image.digest -}}
{{- else if .root.Values.global.requireDigests -}}
{{- fail (printf "images.%s.digest is required, because global.requireDigests is set" .name) -}}
{{- else -}}
{{- printf "%s/%s:%s" $registry $image.repository ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- define "atlasloop.tritonImage" -}}
{{- include "atlasloop.image" (dict "root" . "name" (ternary "tritonGpu" "tritonCpu" (eq .Values.triton.target "gpu"))) -}}
{{- end -}}

{{/* What every pod has. Argument: dict root component values (with nodeSelector, tolerations). */}}
{{- define "atlasloop.pod" -}}
{{- $v := .values | default dict -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .root.Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .root.Values.security.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
securityContext:
  runAsNonRoot: true
  {{- if not .root.Values.security.userByCluster }}
  runAsUser: {{ .root.Values.security.runAsUser }}
  runAsGroup: {{ .root.Values.security.runAsGroup }}
  fsGroup: {{ .root.Values.security.fsGroup }}
  {{- end }}
  # Changing the owner of every file of a large store would take hours at each start.
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile:
    type: RuntimeDefault
{{- with $v.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $v.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "atlasloop.spread" -}}
topologySpreadConstraints:
  {{- $root := .root }}{{ $component := .component }}
  {{- range .root.Values.topologySpread.keys }}
  - maxSkew: 1
    topologyKey: {{ . }}
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "atlasloop.selector" (dict "root" $root "component" $component) | nindent 8 }}
  {{- end }}
{{- end -}}

{{- define "atlasloop.container" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  runAsNonRoot: true
  {{- if not .Values.security.userByCluster }}
  runAsUser: {{ .Values.security.runAsUser }}
  runAsGroup: {{ .Values.security.runAsGroup }}
  {{- end }}
  capabilities:
    drop: [ALL]
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "atlasloop.databaseHost" -}}
{{- if eq .Values.database.mode "embedded" -}}
{{- printf "%s-postgresql" (include "atlasloop.fullname" .) -}}
{{- else -}}
{{- required "database.host is required with database.mode external" .Values.database.host -}}
{{- end -}}
{{- end -}}

{{- define "atlasloop.databaseSecret" -}}
{{- required "database.existingSecret is required: a Secret with the passwords of catalog and Prefect (docs/how-to/install.md)" .Values.database.existingSecret -}}
{{- end -}}

{{- define "atlasloop.caPath" -}}/etc/atlasloop/ca/ca.crt{{- end -}}

{{/* Address of the catalog for a role, without password: libpq takes that from PGPASSWORD. Argument: dict root user. */}}
{{- define "atlasloop.catalogUrl" -}}
{{- $user := .user -}}
{{- with .root -}}
{{- $d := .Values.database -}}
{{- $ssl := "sslmode=disable" -}}
{{- if eq $d.mode "external" -}}
{{- /* libpq takes the system's authorities with verify-full alone, and refuses weaker modes with them. */ -}}
{{- $ssl = printf "sslmode=%s" $d.sslmode -}}
{{- if .Values.global.caBundle.configMap -}}
{{- $ssl = printf "%s&sslrootcert=%s" $ssl (include "atlasloop.caPath" .) -}}
{{- else if eq $d.sslmode "verify-full" -}}
{{- $ssl = printf "%s&sslrootcert=system" $ssl -}}
{{- else if eq $d.sslmode "verify-ca" -}}
{{- fail "global.caBundle.configMap is required with database.sslmode verify-ca: any certificate of a public authority would do otherwise" -}}
{{- end -}}
{{- end -}}
{{- printf "postgresql://%s@%s:%v/%s?%s" $user (include "atlasloop.databaseHost" .) (int $d.port) $d.catalog.name $ssl -}}
{{- end -}}
{{- end -}}

{{- define "atlasloop.prefectApi" -}}
http://{{ include "atlasloop.fullname" . }}-prefect:4200/api
{{- end -}}

{{- define "atlasloop.attentionAddress" -}}
dns:///{{ include "atlasloop.fullname" . }}-attention:18010
{{- end -}}

{{/* Environment of a program that opens the catalog as its owner. */}}
{{- define "atlasloop.catalogEnv" -}}
- {name: ATLASLOOP_CATALOG_URL, value: {{ include "atlasloop.catalogUrl" (dict "root" . "user" .Values.database.catalog.user) | quote }}}
- {name: PGPASSWORD__FILE, value: /run/secrets/database/{{ .Values.database.catalogPasswordKey }}}
- {name: ATLASLOOP_REVIEW_ROLE, value: {{ .Values.database.review.user | quote }}}
{{- with .Values.organs }}
- {name: ATLASLOOP_ORGANS, value: {{ . | quote }}}
{{- end }}
- {name: ATLASLOOP_HOME, value: /tmp/home}
- {name: ATLASLOOP_STORE, value: /var/lib/atlasloop/store}
{{- end -}}

{{/* Environment of a program that does the work of the flows. */}}
{{- define "atlasloop.flowsEnv" -}}
{{ include "atlasloop.catalogEnv" . }}
- {name: ATLASLOOP_ATTENTION_ADDRESS, value: {{ include "atlasloop.attentionAddress" . | quote }}}
- {name: ATLASLOOP_PREFECT_API_URL, value: {{ include "atlasloop.prefectApi" . | quote }}}
- {name: ATLASLOOP_SCORE_SCHEDULE, value: {{ .Values.flows.scoreSchedule | quote }}}
# The loop itself runs without a GPU, and waits for this one's runs.
- {name: ATLASLOOP_TRAINING_DEPLOYMENT, value: finetune/finetune}
- {name: ATLASLOOP_LANDING, value: {{ include "atlasloop.landingRoot" . }}}
{{- if and .Values.review.enabled .Values.review.ingress.enabled }}
- {name: ATLASLOOP_REVIEW_URL, value: "https://{{ .Values.review.ingress.host }}"}
{{- end }}
{{- range $field, $value := .Values.flows.settings }}
- {name: ATLASLOOP_{{ upper $field }}, value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}}
{{- end }}
{{ include "atlasloop.prefectClientEnv" . }}
{{- end -}}

{{- define "atlasloop.landingRoot" -}}/var/lib/atlasloop/landing{{- end -}}

{{- define "atlasloop.modelsRoot" -}}/var/lib/atlasloop/models{{- end -}}

{{/* Where models lie and who serves them, for flow runs: they train, promote and roll back. */}}
{{- define "atlasloop.modelsEnv" -}}
- {name: ATLASLOOP_TRITON_ADDRESS, value: "{{ include "atlasloop.fullname" . }}-triton-replicas:8001"}
- {name: ATLASLOOP_TRITON_LOAD_TIMEOUT_S, value: {{ .Values.triton.startupSeconds | quote }}}
- {name: ATLASLOOP_MODEL_REPOSITORY, value: {{ include "atlasloop.modelsRoot" . }}/repository}
- {name: ATLASLOOP_MODEL_STORE, value: {{ include "atlasloop.modelsRoot" . }}/store}
- {name: ATLASLOOP_TRAINING_RUNS, value: {{ include "atlasloop.modelsRoot" . }}/runs}
- {name: ATLASLOOP_TRITON_CONTROL_KEY__FILE, value: /run/secrets/triton/{{ .Values.triton.modelControl.key }}}
{{- end -}}

{{- define "atlasloop.modelsMounts" -}}
- {name: models, mountPath: {{ include "atlasloop.modelsRoot" . }}}
- {name: triton-secret, mountPath: /run/secrets/triton, readOnly: true}
{{- end -}}

{{- define "atlasloop.controlSecret" -}}
{{- required "triton.modelControl.existingSecret is required: a model brings code along (docs/how-to/install.md)" .Values.triton.modelControl.existingSecret -}}
{{- end -}}

{{- define "atlasloop.controlVolume" -}}
- name: triton-secret
  secret:
    secretName: {{ include "atlasloop.controlSecret" . }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.triton.modelControl.key }}, path: {{ .Values.triton.modelControl.key }}}
{{- end -}}

{{- define "atlasloop.prefectClientEnv" -}}
- {name: PREFECT_API_URL, value: {{ include "atlasloop.prefectApi" . | quote }}}
- {name: PREFECT_HOME, value: /tmp/prefect}
- {name: PREFECT_SERVER_ANALYTICS_ENABLED, value: "false"}
- {name: DO_NOT_TRACK, value: "1"}
- {name: PREFECT_API_AUTH_STRING__FILE, value: /run/secrets/prefect/{{ .Values.prefect.auth.key }}}
{{- end -}}

{{- define "atlasloop.caEnv" -}}
{{- if .Values.global.caBundle.configMap }}
- {name: SSL_CERT_FILE, value: {{ include "atlasloop.caPath" . }}}
{{- end }}
{{- end -}}

{{- define "atlasloop.secretMounts" -}}
- {name: database-secret, mountPath: /run/secrets/database, readOnly: true}
{{ include "atlasloop.commonMounts" . }}
{{- end -}}

{{- define "atlasloop.commonMounts" -}}
- {name: tmp, mountPath: /tmp}
{{- if .Values.global.caBundle.configMap }}
- {name: ca, mountPath: /etc/atlasloop/ca, readOnly: true}
{{- end }}
{{- end -}}

{{/* Who holds this may run code as the flows: for Prefect's server and what works for it alone. */}}
{{- define "atlasloop.prefectMount" -}}
- {name: prefect-secret, mountPath: /run/secrets/prefect, readOnly: true}
{{- end -}}

{{- define "atlasloop.prefectVolume" -}}
- name: prefect-secret
  secret:
    secretName: {{ required "prefect.auth.existingSecret is required: whoever reaches Prefect can run code (docs/how-to/install.md)" .Values.prefect.auth.existingSecret }}
    defaultMode: 0440
    items:
      - {key: {{ .Values.prefect.auth.key }}, path: {{ .Values.prefect.auth.key }}}
{{- end -}}

{{/* Argument: dict root key (of the database Secret), and secret where it is another. */}}
{{- define "atlasloop.secretVolumes" -}}
- name: database-secret
  secret:
    secretName: {{ .secret | default (include "atlasloop.databaseSecret" .root) }}
    defaultMode: 0440
    items:
      - {key: {{ .key }}, path: {{ .key }}}
{{ include "atlasloop.commonVolumes" .root }}
{{- end -}}

{{- define "atlasloop.commonVolumes" -}}
- name: tmp
  emptyDir: {}
{{- with .Values.global.caBundle.configMap }}
- name: ca
  configMap:
    name: {{ . }}
    items:
      - {key: {{ $.Values.global.caBundle.key }}, path: ca.crt}
{{- end }}
{{- end -}}

{{/* Name of a claim. Argument: dict root name values. */}}
{{- define "atlasloop.claim" -}}
{{- .values.existingClaim | default (printf "%s-%s" (include "atlasloop.fullname" .root) .name) -}}
{{- end -}}

{{- define "atlasloop.storeVolume" -}}
- name: store
  persistentVolumeClaim:
    claimName: {{ include "atlasloop.claim" (dict "root" . "name" "store" "values" .Values.storage.store) }}
{{- end -}}

{{- define "atlasloop.landingVolume" -}}
- name: landing
  persistentVolumeClaim:
    claimName: {{ include "atlasloop.claim" (dict "root" . "name" "landing" "values" .Values.storage.landing) }}
{{- end -}}

{{- define "atlasloop.modelsVolume" -}}
- name: models
  persistentVolumeClaim:
    claimName: {{ include "atlasloop.claim" (dict "root" . "name" "models" "values" .Values.storage.models) }}
{{- end -}}

{{- define "atlasloop.modelCacheVolume" -}}
- name: model-cache
  persistentVolumeClaim:
    claimName: {{ include "atlasloop.claim" (dict "root" . "name" "model-cache" "values" .Values.storage.modelCache) }}
{{- end -}}

{{- define "atlasloop.policyHead" }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "atlasloop.fullname" .root }}-{{ .name }}
  labels:
    {{- include "atlasloop.labels" (dict "root" .root "component" .name) | nindent 4 }}
spec:
{{- end }}
{{- define "atlasloop.peers" }}
podSelector:
  matchLabels:
    app.kubernetes.io/name: atlasloop
    app.kubernetes.io/instance: {{ .root.Release.Name }}
  matchExpressions:
    - {key: app.kubernetes.io/component, operator: In, values: {{ toJson .components }}}
{{- end }}
