#!/usr/bin/env bash
#SBATCH --job-name={{ plan.name }}
#SBATCH --nodes={{ hosts.hosts }}
#SBATCH --gpus-per-node={{ hosts.devices_of_host }}
{% if plan.is_study %}
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --array=0-{{ jobs | length - 1 }}
{% else %}
#SBATCH --ntasks-per-node={{ hosts.devices_of_host }}
#SBATCH --exclusive
#SBATCH --mem=0
{% endif %}
#SBATCH --time={{ options.hours }}:00:00
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@{{ seconds_to_save }}
# Starts {{ plan.name }}, one process {{ "a cell" if plan.is_study else "a GPU" }}. Before its time is up Slurm warns this shell, which passes it on;
# a run that has saved and has steps left ends with {{ stopped }}, and goes on in the same job when it comes up.
set -uo pipefail
{% for name, value in plan.env.items() %}
export {{ name }}={{ value | sh }}
{% endfor %}
{% if plan.is_study %}
case $SLURM_ARRAY_TASK_ID in
{% for job in jobs %}
  {{ loop.index0 }}) cells=({{ job.cell_flags | map("sh") | join(" ") }}) ;;
{% endfor %}
  *) echo "no cell $SLURM_ARRAY_TASK_ID" >&2; exit {{ hopeless[0] }} ;;
esac
{% endif %}

run='' warned=''
trap 'warned=yes; [ -z "$run" ] || kill -USR1 "$run"' USR1
srun {% if not plan.is_study %}--cpu-bind=none {% endif %}\
{% if options.image %}
  --container-image={{ options.image | sh }} \
  --container-mounts={{ (options.shared ~ ":" ~ options.shared) | sh }} \
{% endif %}
  {{ jobs[0].command | sh_lines(2) }}{{ ' "${cells[@]}"' if plan.is_study }} &
run=$!
[ -z "$warned" ] || kill -USR1 "$run"  # it came while the run was started
wait "$run"
code=$?
if [ "$warned" ]; then  # the signal ended the first wait
  wait "$run"
  code=$?
fi
# Not where the job was cancelled, or preempted: then Slurm itself does what is to be done.
if [ "$warned" ] && [ "$code" -eq {{ stopped }} ]; then
{% if plan.is_study %}
  scontrol requeue "${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"
{% else %}
  scontrol requeue "$SLURM_JOB_ID"
{% endif %}
fi
exit "$code"
