#!/usr/bin/env bash
# Starts {{ plan.name }} on {{ hosts.slices }} × {{ hosts.kind }}:{{ hosts.shape }} by xpk. What is at {{ options.shared }} is attached to the cluster
# (`xpk storage attach --auto-mount=true`). xpk tells exit codes apart no further than 0 and others.
set -euo pipefail
xpk workload create \
  --workload={{ plan.name }} \
  --cluster={{ options.cluster }} \
  --project={{ options.project }} \
  --zone={{ options.zone }} \
  --tpu-type={{ hosts.accelerator_type }} \
  --num-slices={{ hosts.slices }} \
{% if options.spot %}
  --spot \
{% endif %}
  --docker-image={{ options.image | sh }} \
  --max-restarts={{ options.restarts }} \
  --restart-on-user-code-failure \
  --termination-grace-period-seconds={{ seconds_to_save }} \
{% for name, value in plan.env.items() %}
  --env={{ (name ~ "=" ~ value) | sh }} \
{% endfor %}
  --command={{ jobs[0].command | map("sh") | join(" ") | sh }}
