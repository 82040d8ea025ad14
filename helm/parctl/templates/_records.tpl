{{/*
Refuses an upgrade that would take the definition, and every record with it, from under discovery
that goes on. `lookup` finds nothing in `helm template` and `lint`. Who creates nothing cluster-wide
may lack the right to look, and then an upgrade would fail for that alone.
*/}}
{{- define "parctl.keepRecords" -}}
{{- $wide := or .Values.rbac.create .Values.admissionPolicy.create }}
{{- $needed := and .Values.discovery.enabled (eq .Values.discovery.publish "crd") }}
{{- if and .Release.IsUpgrade (not .Values.crds.install) $needed $wide }}
{{- $name := "nodetopologies.parctl.dev" }}
{{- $found := lookup "apiextensions.k8s.io/v1" "CustomResourceDefinition" "" $name }}
{{- $notes := dig "metadata" "annotations" (dict) $found }}
{{- $named := eq (get $notes "meta.helm.sh/release-name") .Release.Name }}
{{- $here := eq (get $notes "meta.helm.sh/release-namespace") .Release.Namespace }}
{{- if and $named $here (ne (get $notes "helm.sh/resource-policy") "keep") }}
{{- fail (printf "crds.install=false would delete %s, which this release brought, and every record with it, while discovery goes on: upgrade with crds.keep=true first, then with crds.install=false" $name) }}
{{- end }}
{{- end }}
{{- end }}
