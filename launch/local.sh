#!/usr/bin/env bash
# One run in several processes on this host: for tests, and for a host with several GPUs.
#
#   launch/local.sh -n 2 -- --config configs/dala_resnet50_breakhis.py:smoke --workdir runs/two
#   launch/local.sh -n 4 --gpus-per-process 1 -- --config FILE --workdir DIR
#   launch/local.sh -n 2 --module histojax -- doctor
#
# What follows -- goes to every process. The first process that fails ends the others, and its last lines are shown.
# SIGTERM and SIGINT go to all: they save and end with 75, and the same command goes on.
#
# Options:
#   -n N                      processes
#   --devices-per-process M   virtual devices of each on a CPU; where not given, the config's sharding.cpu_devices
#   --gpus-per-process G      gives each process G GPUs of its own, by CUDA_VISIBLE_DEVICES
#   --module NAME             what python -m runs; default histojax.main
#   --python FILE             default: of the active environment, else .venv beside launch/, else python3
#   --port P                  of process 0 on 127.0.0.1; default: a free one
#   --log-dir DIR             process-0.log …; default: a temporary one, kept only on failure
#   --grace SECONDS           from the first failure until the others are killed; default 15
#   --dry-run                 prints the commands and starts nothing
#   --help                    this text
#
# Exit code: 0; 75 where all that did not finish said 75 (saved: start again); else that of the first process that failed.

set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/functions.sh
source "$HERE/functions.sh"

TRY_AGAIN=75
num_processes="" devices_per_process="" gpus_per_process="" module=histojax.main python="" port="" log_dir="" grace=15

while (($#)); do
  case $1 in
    -n) num_processes=$(given "$@") && shift ;;
    --devices-per-process) devices_per_process=$(given "$@") && shift ;;
    --gpus-per-process) gpus_per_process=$(given "$@") && shift ;;
    --module) module=$(given "$@") && shift ;;
    --python) python=$(given "$@") && shift ;;
    --port) port=$(given "$@") && shift ;;
    --log-dir) log_dir=$(given "$@") && shift ;;
    --grace) grace=$(given "$@") && shift ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) show_help "$0" && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; what the processes get stands behind --; see --help" ;;
  esac
  shift
done

[[ -n $num_processes ]] || die "-n is missing: how many processes"
positive -n "$num_processes"
positive --grace "$grace"
[[ -z $devices_per_process ]] || positive --devices-per-process "$devices_per_process"
[[ -z $gpus_per_process ]] || positive --gpus-per-process "$gpus_per_process"
(($#)) || die "nothing to do: what the processes get stands behind --; see --help"

if [[ -z $python ]]; then
  python=python3
  [[ -z ${VIRTUAL_ENV:-} && -x $HERE/../.venv/bin/python ]] && python=$HERE/../.venv/bin/python
fi
command -v "$python" > /dev/null || die "$python: no such program; name an interpreter with --python"

if [[ -z $port ]]; then
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
fi
positive --port "$port"

gpus=()
if [[ -n $gpus_per_process ]]; then
  if [[ -n ${CUDA_VISIBLE_DEVICES:-} ]]; then
    IFS=, read -ra gpus <<< "$CUDA_VISIBLE_DEVICES"
  elif command -v nvidia-smi > /dev/null; then
    mapfile -t gpus < <(nvidia-smi --query-gpu=index --format=csv,noheader)
  fi
  wanted=$((num_processes * gpus_per_process))
  ((${#gpus[@]} >= wanted)) ||
    die "$num_processes processes × $gpus_per_process GPUs need $wanted GPUs; visible here: ${#gpus[@]} (nvidia-smi, CUDA_VISIBLE_DEVICES)"
fi

# The environment of process $1, in the array `settings`.
settings_of() {
  settings=("HISTOJAX_COORDINATOR=127.0.0.1:$port" "HISTOJAX_NUM_PROCESSES=$num_processes" "HISTOJAX_PROCESS_ID=$1")
  if [[ -n $gpus_per_process ]]; then
    local mine=("${gpus[@]:$1*gpus_per_process:gpus_per_process}")
    settings+=("CUDA_VISIBLE_DEVICES=$(IFS=, && printf '%s' "${mine[*]}")")
  fi
  if [[ -n $devices_per_process ]]; then
    local flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices_per_process"
    settings+=("XLA_FLAGS=${flags# }")
  fi
}

if [[ ${DRY_RUN:-} == yes ]]; then
  for ((i = 0; i < num_processes; i++)); do
    settings_of "$i"
    quoted env "${settings[@]}" "$python" -m "$module" "$@"
  done
  exit 0
fi

own_logs=""
[[ -n $log_dir ]] || { log_dir=$(mktemp -d "${TMPDIR:-/tmp}/histojax-local.XXXXXX") && own_logs=yes; }
mkdir -p "$log_dir"

pids=() followers=()
declare -A code=() # of the processes that have ended
first=""           # index of the first that failed, other than by asking to be started again
again=""           # whether one did ask
asked=""           # whether we were told to stop
deadline=""        # second at which those that still run are killed

lives() { [[ -z ${code[$1]:-} ]] && kill -0 "${pids[$1]}" 2> /dev/null; }

signal_living() {
  local i
  for i in "${!pids[@]}"; do
    if lives "$i"; then kill -s "$1" "${pids[$i]}" 2> /dev/null || true; fi
  done
}

stop() {
  asked=yes
  signal_living TERM
}
trap stop TERM INT HUP

for ((i = 0; i < num_processes; i++)); do
  [[ -z $asked ]] || break
  log=$log_dir/process-$i.log
  touch "$log"
  already=$(wc -c < "$log") # an earlier run's words stay in the file
  settings_of "$i"
  env "${settings[@]}" "$python" -m "$module" "$@" >> "$log" 2>&1 < /dev/null &
  pids[i]=$!
  (
    trap '' TERM INT HUP # it ends when the process does
    tail -c "+$((already + 1))" -s 0.1 --pid="${pids[$i]}" -f "$log" | sed -u "s/^/[$i] /"
  ) &
  followers+=($!)
done

while ((${#code[@]} < ${#pids[@]})); do
  for i in "${!pids[@]}"; do
    [[ -z ${code[$i]:-} ]] || continue
    if lives "$i"; then continue; fi
    code[$i]=0
    wait "${pids[$i]}" || code[$i]=$?
    if ((code[$i])); then
      if ((code[$i] == TRY_AGAIN)); then
        again=yes
        deadline=${deadline:-$((SECONDS + 60))} # the others are about to end, too
      elif [[ -z $first ]]; then
        first=$i
        deadline=$((SECONDS + grace))
        signal_living TERM
      fi
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then signal_living KILL; fi
  sleep 0.1 || true
done 2> /dev/null # where bash tells of processes that were killed
for follower in "${followers[@]}"; do wait "$follower" || true; done

if [[ -n $first ]]; then
  {
    printf '\nlocal.sh: process %s of %s failed first, with exit code %s. Its last lines:\n' \
      "$first" "$num_processes" "${code[$first]}"
    tail -n 20 "$log_dir/process-$first.log" | sed 's/^/  /'
    for i in "${!pids[@]}"; do
      [[ $i == "$first" ]] || printf 'local.sh: process %s ended with exit code %s\n' "$i" "${code[$i]}"
    done
    printf 'local.sh: whole logs: %s\n' "$log_dir"
  } >&2
  exit "${code[$first]}"
fi
[[ -z $own_logs ]] || rm -r "$log_dir"
if [[ -n $again || (-n $asked && ${#pids[@]} -lt $num_processes) ]]; then
  printf 'local.sh: stopped and saved; the same command goes on\n' >&2
  exit "$TRY_AGAIN"
fi
