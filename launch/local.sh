#!/usr/bin/env bash
# Start one run in several processes on this host: for tests, or for a host with several GPUs.
#
#   launch/local.sh -n 2 -- --config configs/dala_resnet50_breakhis.py:smoke --workdir runs/two
#   launch/local.sh -n 4 --gpus-per-process 1 -- --config FILE --workdir DIR
#   launch/local.sh -n 2 --module histojax -- doctor
#
# Every process gets the arguments after --. The first process that fails ends the others, and its last lines are shown.
# SIGTERM and SIGINT are forwarded to all processes: they save and exit with 75; rerun the same command to resume.
#
# Options:
#   -n N                      number of processes
#   --devices-per-process M   virtual CPU devices per process; default: the config's sharding.cpu_devices
#   --gpus-per-process G      GPUs per process, assigned through CUDA_VISIBLE_DEVICES
#   --module NAME             module that python -m runs; default histojax.main
#   --python FILE             interpreter; default: of the active environment, else .venv beside launch/, else python3
#   --port P                  port of process 0 on 127.0.0.1; default: a free one
#   --log-dir DIR             folder for process-0.log …; default: a temporary one, kept only on failure
#   --grace SECONDS           time from the first failure until the others are killed; default 15
#   --dry-run                 print the commands and start nothing
#   --help                    print this text
#
# Exit code: 0 if all processes finished; 75 if the others exited with 75 (saved, resumable); else that of the first
# process that failed.

set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/functions.sh
source "$HERE/functions.sh"

EXIT_RESUMABLE=75
num_processes="" devices_per_process="" gpus_per_process="" module=histojax.main python="" port="" log_dir="" grace=15

while (($#)); do
  case $1 in
    -n) num_processes=$(option_value "$@") && shift ;;
    --devices-per-process) devices_per_process=$(option_value "$@") && shift ;;
    --gpus-per-process) gpus_per_process=$(option_value "$@") && shift ;;
    --module) module=$(option_value "$@") && shift ;;
    --python) python=$(option_value "$@") && shift ;;
    --port) port=$(option_value "$@") && shift ;;
    --log-dir) log_dir=$(option_value "$@") && shift ;;
    --grace) grace=$(option_value "$@") && shift ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) show_help "$0" && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; put the arguments of the processes after --; see --help" ;;
  esac
  shift
done

[[ -n $num_processes ]] || die "-n is missing: the number of processes"
positive -n "$num_processes"
positive --grace "$grace"
[[ -z $devices_per_process ]] || positive --devices-per-process "$devices_per_process"
[[ -z $gpus_per_process ]] || positive --gpus-per-process "$gpus_per_process"
(($#)) || die "nothing to run: put the arguments of the processes after --; see --help"

if [[ -z $python ]]; then
  python=python3
  [[ -z ${VIRTUAL_ENV:-} && -x $HERE/../.venv/bin/python ]] && python=$HERE/../.venv/bin/python
fi
command -v "$python" > /dev/null || die "$python: no such program; pass an interpreter with --python"

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
    die "$num_processes processes × $gpus_per_process GPUs need $wanted GPUs; visible: ${#gpus[@]} (see nvidia-smi, CUDA_VISIBLE_DEVICES)"
fi

# Put the environment of process $1 into the array `settings`.
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
declare -A code=() # exit codes of the processes that have ended
first_failed=""    # index of the first process that failed with a code other than 75
resumable=""       # yes if a process exited with 75
stopping=""        # yes if this script received a signal
deadline=""        # second at which the processes that still run are killed

is_running() { [[ -z ${code[$1]:-} ]] && kill -0 "${pids[$1]}" 2> /dev/null; }

signal_running() {
  local i
  for i in "${!pids[@]}"; do
    if is_running "$i"; then kill -s "$1" "${pids[$i]}" 2> /dev/null || true; fi
  done
}

stop() {
  stopping=yes
  signal_running TERM
}
trap stop TERM INT HUP

for ((i = 0; i < num_processes; i++)); do
  [[ -z $stopping ]] || break
  log=$log_dir/process-$i.log
  touch "$log"
  old_size=$(wc -c < "$log") # output of an earlier run stays in the file
  settings_of "$i"
  env "${settings[@]}" "$python" -m "$module" "$@" >> "$log" 2>&1 < /dev/null &
  pids[i]=$!
  (
    trap '' TERM INT HUP # it ends with the process
    tail -c "+$((old_size + 1))" -s 0.1 --pid="${pids[$i]}" -f "$log" | sed -u "s/^/[$i] /"
  ) &
  followers+=($!)
done

while ((${#code[@]} < ${#pids[@]})); do
  for i in "${!pids[@]}"; do
    [[ -z ${code[$i]:-} ]] || continue
    if is_running "$i"; then continue; fi
    code[$i]=0
    wait "${pids[$i]}" || code[$i]=$?
    if ((code[$i])); then
      if ((code[$i] == EXIT_RESUMABLE)); then
        resumable=yes
        deadline=${deadline:-$((SECONDS + 60))} # the others are about to end
      elif [[ -z $first_failed ]]; then
        first_failed=$i
        deadline=$((SECONDS + grace))
        signal_running TERM
      fi
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then signal_running KILL; fi
  sleep 0.1 || true
done 2> /dev/null # hides bash's messages about killed processes
for follower in "${followers[@]}"; do wait "$follower" || true; done

if [[ -n $first_failed ]]; then
  {
    printf '\nlocal.sh: process %s of %s failed first, with exit code %s. Its last lines:\n' \
      "$first_failed" "$num_processes" "${code[$first_failed]}"
    tail -n 20 "$log_dir/process-$first_failed.log" | sed 's/^/  /'
    for i in "${!pids[@]}"; do
      [[ $i == "$first_failed" ]] || printf 'local.sh: process %s ended with exit code %s\n' "$i" "${code[$i]}"
    done
    printf 'local.sh: full logs: %s\n' "$log_dir"
  } >&2
  exit "${code[$first_failed]}"
fi
[[ -z $own_logs ]] || rm -r "$log_dir"
if [[ -n $resumable || (-n $stopping && ${#pids[@]} -lt $num_processes) ]]; then
  printf 'local.sh: stopped and saved; rerun the same command to resume\n' >&2
  exit "$EXIT_RESUMABLE"
fi
