{{/*
`text` of at most `max` characters. A hash keeps texts apart that begin alike; what comes before
its hyphen must not end in a dot, which no name may have there.
*/}}
{{- define "parctl.short" -}}
{{- if gt (len .text) .max -}}
{{- printf "%s-%s" (.text | trunc (sub .max 9 | int) | trimAll "-.") (.text | sha256sum | trunc 8) }}
{{- else -}}
{{- .text }}
{{- end }}
{{- end }}

{{/* Name of the chart in object names. */}}
{{- define "parctl.name" -}}
{{- default .Chart.Name .Values.nameOverride }}
{{- end }}

{{/* Name of the release in object names: every name of cluster-wide objects starts with it. */}}
{{- define "parctl.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride }}
{{- else -}}
{{- $name := include "parctl.name" . }}
{{- if contains $name .Release.Name -}}
{{- include "parctl.short" (dict "text" .Release.Name "max" 40) }}
{{- else -}}
{{- include "parctl.short" (dict "text" (printf "%s-%s" .Release.Name $name) "max" 40) }}
{{- end }}
{{- end }}
{{- end }}

{{/*
Name of a cluster-wide object: two releases of one name in two namespaces do not meet.
The release of that name in the namespace of that name has the short one. Release `b-c` in `a` and
release `c` in `a-b` do meet, and so may a short name and a long one: Helm refuses the second
release, and `fullnameOverride` gives it another name.
*/}}
{{- define "parctl.clusterName" -}}
{{- $full := include "parctl.fullname" . }}
{{- if eq $full .Release.Namespace -}}
{{- $full }}
{{- else -}}
{{- include "parctl.short" (dict "text" (printf "%s-%s" .Release.Namespace $full) "max" 50) }}
{{- end }}
{{- end }}

{{/* What selects the pods of a component; `component` is set by the caller. */}}
{{- define "parctl.selectorLabels" -}}
app.kubernetes.io/name: {{ include "parctl.name" .root | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/*
Labels of an object. What selects pods cannot be changed by values (the schema refuses it);
`labels`, a map, wins over the common ones, and both over the version and what it is part of.
*/}}
{{- define "parctl.labels" -}}
{{- $own := dict "app.kubernetes.io/managed-by" .root.Release.Service }}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") }}
{{- $about := dict "app.kubernetes.io/version" .root.Chart.AppVersion "app.kubernetes.io/part-of" "parctl" }}
{{ include "parctl.selectorLabels" . }}
{{ merge $own (default (dict) .labels) .root.Values.commonLabels $about | toYaml }}
{{- end }}

{{/*
Annotations of an object: the common ones and `extra`, a map. Empty when there are none.
*/}}
{{- define "parctl.annotations" -}}
{{- $all := merge (dict) (default (dict) .extra) .root.Values.commonAnnotations }}
{{- if $all }}
annotations:
  {{- toYaml $all | nindent 2 }}
{{- end }}
{{- end }}

{{/* Name, labels and annotations of an object. */}}
{{- define "parctl.metadata" -}}
name: {{ .name | quote }}
{{- with .namespace }}
namespace: {{ . | quote }}
{{- end }}
labels:
  {{- include "parctl.labels" . | trim | nindent 2 }}
{{- include "parctl.annotations" . }}
{{- end }}

{{- define "parctl.image" -}}
{{- $registry := default (dig "imageRegistry" "" .Values.global) .Values.image.registry }}
{{- $name := .Values.image.repository }}
{{- with $registry }}
{{- $name = printf "%s/%s" (trimSuffix "/" .) $name }}
{{- end }}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $name .Values.image.digest }}
{{- else -}}
{{- printf "%s:%s" $name (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- define "parctl.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "parctl.discoveryAccount" -}}
{{- default (printf "%s-discovery" (include "parctl.fullname" .)) .Values.discovery.serviceAccount.name }}
{{- end }}

{{/* Whether this release keeps records as ConfigMaps: empty or not. */}}
{{- define "parctl.recordMaps" -}}
{{- if and .Values.discovery.enabled (eq .Values.discovery.publish "configMap") -}}
yes
{{- end }}
{{- end }}

{{/* The security context of every container, which passes the restricted standard. */}}
{{- define "parctl.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "parctl.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{/* Subjects of a binding: users and groups belong to the API group, service accounts do not. */}}
{{- define "parctl.subjects" -}}
{{- range . }}
- kind: {{ .kind }}
  name: {{ .name | quote }}
  {{- if eq .kind "ServiceAccount" }}
  namespace: {{ .namespace | quote }}
  {{- else }}
  apiGroup: rbac.authorization.k8s.io
  {{- end }}
{{- end }}
{{- end }}

{{/* What each rank of the test does: rank 0 listens, rank 1 calls, and each tells the other its rank. */}}
{{- define "parctl.handshake" -}}
import os, socket, time
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]) + 1
if rank == 0:
    listener = socket.create_server(("", place[1]))
    listener.settimeout(120)
    peer = listener.accept()[0]
else:
    end = time.time() + 120
    while True:
        try:
            peer = socket.create_connection(place, 5)
            break
        except OSError:
            if time.time() > end:
                raise
            time.sleep(0.2)
peer.settimeout(60)
peer.sendall(b"%d" % rank)
other = int(peer.recv(1))
assert {rank, other} == {0, 1} and world == 2
print("rank", rank, "of", world, "shook hands with", other, flush=True)
{{- end }}
