{{- /* Fails where values contradict each other, or would make something that cannot work. */}}
{{- define "runs-gateway.refusals" -}}
{{- $callers := .Values.callers }}
{{- $jwt := $callers.jwt }}
{{- $log := .Values.eventLog }}
{{- $named := or $callers.tokensSecret.name $jwt.issuer $callers.mesh .Values.tls.clientCa }}
{{- if and .Values.upstream.apiKeySecret.name (not (or $named $callers.allowAnonymous)) }}
{{- fail "upstream.apiKeySecret: a gateway with a key of its own has to know its callers: set callers.tokensSecret, callers.jwt, callers.mesh, tls.clientCa or callers.allowAnonymous" }}
{{- end }}
{{- if and .Values.tls.clientCa (not .Values.tls.secretName) }}{{ fail "tls.clientCa: needs tls.secretName" }}{{ end }}
{{- if and $callers.allowedClients (not .Values.tls.clientCa) }}{{ fail "callers.allowedClients: needs tls.clientCa" }}{{ end }}
{{- if and $jwt.issuer (not $jwt.audience) }}{{ fail "callers.jwt: needs audience" }}{{ end }}
{{- if and $jwt.issuer (eq (empty $jwt.jwksUrl) (empty $jwt.jwksConfigMap.name)) }}{{ fail "callers.jwt: needs either jwksUrl or jwksConfigMap" }}{{ end }}
{{- if and (not $jwt.issuer) (or $jwt.audience $jwt.jwksUrl $jwt.jwksConfigMap.name) }}{{ fail "callers.jwt: needs issuer" }}{{ end }}
{{- if $callers.isolation.keySecret.name }}
{{- if not (and .Values.upstream.apiKeySecret.name $named) }}
{{- fail "callers.isolation: needs upstream.apiKeySecret, and callers with names: callers.tokensSecret, callers.jwt, callers.mesh or tls.clientCa" }}
{{- end }}
{{- else if or $callers.isolation.assistants (ne $callers.isolation.unmarked "deny") }}
{{- fail "callers.isolation: needs keySecret, the same for all gateways" }}
{{- end }}
{{- if and (hasPrefix "redis" $log.store) (not $log.keySecret.name) }}{{ fail "eventLog.store: Redis needs eventLog.keySecret, the same for all gateways" }}{{ end }}
{{- if regexMatch "^[^/]*//[^/@]*:[^/@]*@" $log.store }}{{ fail "eventLog.store: the password belongs into eventLog.passwordSecret" }}{{ end }}
{{- if and .Values.serviceMonitor.enabled .Values.networkPolicy.enabled (not .Values.networkPolicy.scrapers) }}
{{- fail "serviceMonitor: the network policy lets nobody read metrics: set networkPolicy.scrapers" }}
{{- end }}
{{- end }}
