#!/usr/bin/env bash
# Asks for {{ hosts.slices }} × {{ hosts.kind }}:{{ hosts.shape }}; when they are there, each host starts {{ plan.name }}. Afterwards:
#   gcloud compute tpus queued-resources delete {{ plan.name }} --project={{ options.project }} --zone={{ options.zone }} --force
set -euo pipefail
startup=$(mktemp)
trap 'rm -f "$startup"' EXIT
# What every host runs as it starts, and as it starts again.
cat > "$startup" <<'STARTUP'
#!/usr/bin/env bash
export HOME=/root
image={{ options.image | sh }}
gcloud auth configure-docker --quiet "${image%%/*}"
{% if plan.volume %}
docker volume create --driver=local --opt=type=nfs \
  --opt=o=addr={{ plan.volume.server | sh }},hard --opt=device=:{{ plan.volume.export | sh }} shared
{% else %}
mkdir -p {{ options.shared | sh }}
{% endif %}
until docker pull "$image"; do sleep 10; done
restart=0
while :; do
  docker run --rm --privileged --network=host --ipc=host \
    --stop-timeout={{ seconds_to_save }} \
    --volume={{ (("shared" if plan.volume else options.shared) ~ ":" ~ options.shared) | sh }} \
{% for name, value in plan.env.items() %}
    --env={{ (name ~ "=" ~ value) | sh }} \
{% endfor %}
    "$image" \
    {{ jobs[0].command | sh_lines(4) }}
  code=$?
  echo "{{ plan.name }} ended with exit code $code after $restart restarts"
  case $code in
    0 | {{ hopeless | join(" | ") }}) exit "$code" ;;  # done, or it would end there again
  esac
  ((restart++ < {{ options.restarts }})) || exit "$code"
  sleep 10
done
STARTUP
gcloud compute tpus queued-resources create {{ plan.name }} \
  --project={{ options.project }} \
  --zone={{ options.zone }} \
{% if hosts.kind == "v5p" %}
  --type=v5p \
  --topology={{ hosts.shape }} \
{% else %}
  --accelerator-type={{ hosts.accelerator_type }} \
{% endif %}
  --runtime-version={{ hosts.tpu.runtime }} \
{% if hosts.slices > 1 %}
  --node-count={{ hosts.slices }} \
  --node-prefix={{ plan.name }} \
{% else %}
  --node-id={{ plan.name }} \
{% endif %}
{% if options.spot %}
  --spot \
{% endif %}
  --metadata-from-file=startup-script="$startup"
