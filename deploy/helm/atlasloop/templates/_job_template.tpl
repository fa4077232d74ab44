{{/* Prefect's base job template of one pool, as JSON. Argument: dict root shape.
What stands in double braces inside is for Prefect's worker, which fills it in for each run. Its class
asks for completions and parallelism inside of the pod, where Kubernetes knows neither and ignores them. */}}
{{- define "atlasloop.jobTemplate" -}}
{{- $root := .root -}}{{- $shape := .shape -}}
{{- $pod := include "atlasloop.pod" (dict "root" $root "values" $shape) | fromYaml -}}
{{- $labels := include "atlasloop.labels" (dict "root" $root "component" "flow-run") | fromYaml -}}
{{- $resources := deepCopy $shape.resources -}}
{{- if gt (int $shape.gpus) 0 -}}
{{- $resources = merge (dict "limits" (dict $root.Values.flows.gpuResource (int $shape.gpus))) $resources -}}
{{- end -}}
{{- $env := concat (include "atlasloop.flowsEnv" $root | fromYamlArray) (include "atlasloop.modelsEnv" $root | fromYamlArray) -}}
{{- with include "atlasloop.caEnv" $root -}}{{- $env = concat $env (. | fromYamlArray) -}}{{- end -}}
{{- $own := dict -}}
{{- range $env -}}{{- $_ := set $own .name .value -}}{{- end -}}
{{- $mounts := include "atlasloop.secretMounts" $root | fromYamlArray -}}
{{- $mounts = concat $mounts (include "atlasloop.modelsMounts" $root | fromYamlArray) (include "atlasloop.prefectMount" $root | fromYamlArray) (list (dict "name" "store" "mountPath" "/var/lib/atlasloop/store") (dict "name" "landing" "mountPath" (include "atlasloop.landingRoot" $root)) (dict "name" "shm" "mountPath" "/dev/shm")) -}}
{{- $volumes := include "atlasloop.secretVolumes" (dict "root" $root "key" $root.Values.database.catalogPasswordKey) | fromYamlArray -}}
{{- $volumes = concat $volumes (include "atlasloop.storeVolume" $root | fromYamlArray) (include "atlasloop.landingVolume" $root | fromYamlArray) (include "atlasloop.modelsVolume" $root | fromYamlArray) (include "atlasloop.controlVolume" $root | fromYamlArray) (include "atlasloop.prefectVolume" $root | fromYamlArray) (list (dict "name" "shm" "emptyDir" (dict "medium" "Memory" "sizeLimit" $shape.sharedMemory))) -}}
{{- $container := merge (dict
    "name" "prefect-job"
    "image" "{{ image }}"
    "imagePullPolicy" "IfNotPresent"
    "args" "{{ command }}"
    "env" "{{ env }}"
    "resources" $resources
    "volumeMounts" $mounts) (include "atlasloop.container" $root | fromYaml) -}}
{{- $spec := merge (dict
    "completions" 1
    "parallelism" 1
    "restartPolicy" "Never"
    "serviceAccountName" "{{ service_account_name }}"
    "terminationGracePeriodSeconds" 60
    "containers" (list $container)
    "volumes" $volumes) $pod -}}
{{- $manifest := dict
    "apiVersion" "batch/v1"
    "kind" "Job"
    "metadata" (dict "labels" "{{ labels }}" "annotations" "{{ annotations }}" "namespace" "{{ namespace }}" "generateName" "{{ name }}-")
    "spec" (dict
      "backoffLimit" 0
      "ttlSecondsAfterFinished" (int $root.Values.flows.finishedJobSeconds)
      "template" (dict "metadata" (dict "labels" $labels) "spec" $spec)) -}}
{{- $variables := dict
    "name" (dict "type" "string" "title" "Name" "default" "flow-run")
    "env" (dict "type" "object" "title" "Environment" "additionalProperties" (dict "type" "string") "default" $own)
    "labels" (dict "type" "object" "title" "Labels" "additionalProperties" (dict "type" "string") "default" $labels)
    "annotations" (dict "type" "object" "title" "Annotations" "additionalProperties" (dict "type" "string") "default" (dict))
    "command" (dict "type" "string" "title" "Command")
    "namespace" (dict "type" "string" "title" "Namespace" "default" $root.Release.Namespace)
    "image" (dict "type" "string" "title" "Image" "default" (include "atlasloop.image" (dict "root" $root "name" $shape.image)))
    "service_account_name" (dict "type" "string" "title" "Service account" "default" (printf "%s-flow-run" (include "atlasloop.fullname" $root)))
    "job_watch_timeout_seconds" (dict "type" "integer" "title" "Seconds without an event until a job counts as lost")
    "pod_watch_timeout_seconds" (dict "type" "integer" "title" "Seconds to wait for a node" "default" 3600)
    "stream_output" (dict "type" "boolean" "title" "Show the log in the worker's" "default" true) -}}
{{- dict
    "job_configuration" (dict
      "name" "{{ name }}"
      "command" "{{ command }}"
      "env" "{{ env }}"
      "labels" "{{ labels }}"
      "annotations" "{{ annotations }}"
      "namespace" "{{ namespace }}"
      "job_watch_timeout_seconds" "{{ job_watch_timeout_seconds }}"
      "pod_watch_timeout_seconds" "{{ pod_watch_timeout_seconds }}"
      "stream_output" "{{ stream_output }}"
      "job_manifest" $manifest)
    "variables" (dict "type" "object" "properties" $variables) | mustToPrettyJson -}}
{{- end -}}
