{{/* What no schema can say: values that contradict each other. */}}
{{- define "parctl.checks" -}}
{{- if not .Values.enabled }}
{{- fail "enabled: false is for the condition of an umbrella chart; to have less of this one, see discovery.enabled, crds.install, rbac.create" }}
{{- end }}
{{- if and .Values.discovery.driver.root (not .Values.discovery.privileged) }}
{{- fail "discovery.driver.root needs discovery.privileged: true - without a runtime that hands out devices, the kernel lets no other container open them" }}
{{- end }}
{{- if and .Values.discovery.enabled (ne .Values.discovery.publish "crd") (or .Values.discovery.labels .Values.discovery.taintEffect) }}
{{- fail "discovery.labels and discovery.taintEffect change nodes, and discovery.publish: configMap is for those who may not: set publish: crd" }}
{{- end }}
{{- include "parctl.checkQueues" .Values.kueue }}
{{- include "parctl.checkAccess" . }}
{{- if .Values.discovery.enabled }}
{{- include "parctl.checkPods" .Values.discovery }}
{{- end }}
{{- with .Values.test.recipe }}
{{- with (fromYaml .).Error }}
{{- fail (printf "test.recipe is no YAML: %s" .) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "parctl.checkQueues" -}}
{{- if .enabled }}
{{- if not .clusterQueue.quotas }}
{{- fail "kueue.clusterQueue.quotas is empty: nothing would ever be admitted" }}
{{- end }}
{{- if not (or .topology.create .topology.name) }}
{{- fail "kueue.topology.create: false needs kueue.topology.name, that of a Topology that is there" }}
{{- end }}
{{- if has "kubernetes.io/hostname" (initial .topology.levels) }}
{{- fail "kueue.topology.levels go from far to near: kubernetes.io/hostname is the last" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "parctl.checkAccess" -}}
{{- if not .Values.rbac.create }}
{{- if or .Values.access.users .Values.access.viewers }}
{{- fail "access.users and access.viewers are bound by the chart's roles, which rbac.create: false leaves out" }}
{{- end }}
{{- if .Values.rbac.aggregate }}
{{- fail "rbac.aggregate adds the chart's roles, which rbac.create: false leaves out" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "parctl.checkPods" -}}
{{- if not (or .serviceAccount.create .serviceAccount.name) }}
{{- fail "discovery.serviceAccount.create: false needs discovery.serviceAccount.name" }}
{{- end }}
{{- if gt (int .pollSeconds) (int .intervalSeconds) }}
{{- fail "discovery.pollSeconds is longer than discovery.intervalSeconds" }}
{{- end }}
{{- $names := list "NVIDIA_VISIBLE_DEVICES" "NVIDIA_DRIVER_CAPABILITIES" }}
{{- $volumes := list "sys" "run" }}
{{- $paths := list "/sys" "/run/parctl" }}
{{- if .driver.root }}
{{- $names = append $names "LD_LIBRARY_PATH" }}
{{- $volumes = append $volumes "driver" }}
{{- $paths = append $paths "/driver" }}
{{- end }}
{{- range .extraEnv }}
{{- if has .name $names }}
{{- fail (printf "discovery.extraEnv: %s is there already" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- range .extraVolumes }}
{{- if has .name $volumes }}
{{- fail (printf "discovery.extraVolumes: the name %s is taken" .name) }}
{{- end }}
{{- $volumes = append $volumes .name }}
{{- end }}
{{- range .extraVolumeMounts }}
{{- if not (has .name $volumes) }}
{{- fail (printf "discovery.extraVolumeMounts: there is no volume %s" .name) }}
{{- end }}
{{- if has .mountPath $paths }}
{{- fail (printf "discovery.extraVolumeMounts: %s is taken" .mountPath) }}
{{- end }}
{{- $paths = append $paths .mountPath }}
{{- end }}
{{- $limits := default (dict) .resources.limits }}
{{- range $name, $amount := .resources.requests }}
{{- if hasKey $limits $name }}
{{- $most := get $limits $name }}
{{- if gt (include "parctl.amount" $amount | float64) (include "parctl.amount" $most | float64) }}
{{- fail (printf "discovery.resources: requests.%s is %v, more than limits.%s, %v" $name $amount $name $most) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* A quantity of Kubernetes as a plain number. */}}
{{- define "parctl.amount" -}}
{{- $text := toString . }}
{{- $unit := regexFind "[A-Za-z]*$" $text }}
{{- $units := dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 "Ki" 1024.0 "Mi" 1048576.0 "Gi" 1073741824.0 "Ti" 1099511627776.0 "Pi" 1125899906842624.0 "Ei" 1152921504606846976.0 }}
{{- mulf (trimSuffix $unit $text | float64) (get $units $unit | default 1.0) }}
{{- end }}
