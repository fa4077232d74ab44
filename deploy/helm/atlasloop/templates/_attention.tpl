{{/* The attention container, alone or beside Triton. Argument: root. */}}
{{- define "atlasloop.attentionContainer" -}}
{{- $sidecar := eq .Values.attention.placement "sidecar" -}}
- name: attention
  image: {{ include "atlasloop.image" (dict "root" . "name" "attention") }}
  imagePullPolicy: IfNotPresent
  env:
    - {name: ATLAS_ATTENTION_LISTEN, value: "0.0.0.0:18010"}
    - {name: ATLAS_ATTENTION_METRICS_LISTEN, value: "0.0.0.0:18011"}
    # Neither TLS nor login: the network policy says who may connect.
    - {name: ATLAS_ATTENTION_ALLOW_REMOTE, value: "true"}
    {{- if $sidecar }}
    - {name: ATLAS_ATTENTION_TRITON, value: "127.0.0.1:8001"}
    {{- else }}
    - {name: ATLAS_ATTENTION_TRITON, value: "{{ include "atlasloop.fullname" . }}-triton-replicas:8001"}
    {{- end }}
    - {name: ATLAS_ATTENTION_STORE, value: /var/lib/atlasloop/store}
    - {name: ATLAS_ATTENTION_SPOOL_FOLDER, value: /var/spool/atlasloop}
    {{- with .Values.organs }}
    - {name: ATLAS_ATTENTION_ORGANS, value: {{ . | quote }}}
    {{- end }}
    {{- range $field, $value := .Values.attention.settings }}
    - {name: ATLAS_ATTENTION_{{ upper $field }}, value: {{ ternary $value (toJson $value) (kindIs "string" $value) | quote }}}
    {{- end }}
    - {name: ATLAS_ATTENTION_STOP_GRACE_S, value: {{ max 1 (sub .Values.attention.terminationGracePeriodSeconds 15) | quote }}}
  ports:
    - {name: grpc, containerPort: 18010}
    - {name: attn-metrics, containerPort: 18011}
  {{- include "atlasloop.container" . | nindent 2 }}
  startupProbe:
    tcpSocket: {port: grpc}
    periodSeconds: 2
    failureThreshold: 60
  # SERVING means that every model answered a real inference. While Triton is away the pod is not
  # ready; restarting it would help nobody, so liveness asks the process alone.
  readinessProbe:
    grpc: {port: 18010}
    periodSeconds: 10
    timeoutSeconds: 5
  livenessProbe:
    httpGet: {path: /metrics, port: attn-metrics}
    periodSeconds: 20
    timeoutSeconds: 10
    failureThreshold: 6
  resources:
    {{- toYaml .Values.attention.resources | nindent 4 }}
  volumeMounts:
    - {name: store, mountPath: /var/lib/atlasloop/store}
    - {name: spool, mountPath: /var/spool/atlasloop}
    - {name: {{ ternary "attention-tmp" "tmp" $sidecar }}, mountPath: /tmp}
    {{- if $sidecar }}
    - {name: shm, mountPath: /dev/shm}
    {{- end }}
{{- end -}}
