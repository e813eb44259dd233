#!/usr/bin/env bash
# Start one run on a Cloud TPU of any size: the same command on all of its hosts.
#
#   launch/tpu_pod.sh up --name NAME --zone ZONE --type v5litepod-64 --runtime v2-alpha-tpuv5-lite \
#       -- --config FILE --workdir /shared/runs/a
#
# Verbs:
#   up        create, copy, install, run and logs, one after the other
#   create    create a TPU VM or a queued resource and wait until it is ready; an existing one of that name is reused
#   copy      copy this source tree to all hosts
#   install   install Python and the extra `tpu` on all hosts
#   run       start a process with the arguments after -- on all hosts; it keeps running when the connection ends
#   logs      follow the output of one host (--worker, default 0) until its process ends
#   status    show the state of the TPU, and for each host `running` or the exit code
#   stop      send SIGTERM to all processes: they save and exit with 75
#   resume    repeat until the run is finished: replace a preempted TPU, and restart after every exit code 75
#   delete    delete the TPU, or the queued resource with it
#
# Options, each with the environment variable that sets its default:
#   --name NAME        TPU_NAME          name of the TPU
#   --zone ZONE        TPU_ZONE          zone of the TPU
#   --project ID       TPU_PROJECT       project; default: gcloud's setting
#   --type TYPE        TPU_TYPE          accelerator type, such as v5litepod-64
#   --runtime VERSION  TPU_RUNTIME       software version of the hosts, such as v2-alpha-tpuv5-lite
#   --spot             TPU_SPOT=yes      use a spot TPU: cheaper, but may be preempted at any time
#   --queued           TPU_QUEUED=yes    create a queued resource, which waits for free capacity
#   --create-args ARGS TPU_CREATE_ARGS   extra arguments of gcloud's create, such as '--network=N --subnetwork=S'
#   --module MODULE    TPU_MODULE        module that python -m runs; default histojax.main
#   --python VERSION   TPU_PYTHON        Python version on the hosts; default 3.12
#   --worker N         TPU_WORKER        host whose output logs follows; default 0
#   --poll SECONDS     TPU_POLL          interval between queries of the state; default 30
#   --dry-run                            print the commands and change nothing
#   --help                               print this text
#
# A preempted TPU loses its disks, and its hosts share none. Put the work directory and the images in a bucket
# (gs://BUCKET/PATH), or on a path that every host has mounted, such as Filestore; --create-args can name a start-up
# script that mounts it. The script needs gcloud, logged in, with the TPU API enabled.

set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/functions.sh
source "$HERE/functions.sh"

EXIT_RESUMABLE=75

verb=${1:-}
case $verb in
  -h | --help) show_help "$0" && exit 0 ;;
  up | create | copy | install | run | logs | status | stop | resume | delete) shift ;;
  *) die "unknown verb '$verb': up, create, copy, install, run, logs, status, stop, resume or delete; see --help" ;;
esac
while (($#)); do
  case $1 in
    --name) TPU_NAME=$(option_value "$@") && shift ;;
    --zone) TPU_ZONE=$(option_value "$@") && shift ;;
    --project) TPU_PROJECT=$(option_value "$@") && shift ;;
    --type) TPU_TYPE=$(option_value "$@") && shift ;;
    --runtime) TPU_RUNTIME=$(option_value "$@") && shift ;;
    --create-args) TPU_CREATE_ARGS=$(option_value "$@") && shift ;;
    --module) TPU_MODULE=$(option_value "$@") && shift ;;
    --python) TPU_PYTHON=$(option_value "$@") && shift ;;
    --worker) TPU_WORKER=$(option_value "$@") && shift ;;
    --poll) TPU_POLL=$(option_value "$@") && shift ;;
    --spot) TPU_SPOT=yes ;;
    --queued) TPU_QUEUED=yes ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) show_help "$0" && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; put the arguments of the processes after --; see --help" ;;
  esac
  shift
done
args=("$@")

need --name TPU_NAME "the name of the TPU"
need --zone TPU_ZONE "its zone"
case $verb in
  up | create | resume)
    need --type TPU_TYPE "its accelerator type, such as v5litepod-64"
    need --runtime TPU_RUNTIME "the software version of its hosts, such as v2-alpha-tpuv5-lite"
    ;;
esac
case $verb in
  up | run | resume)
    ((${#args[@]})) || die "nothing to run: put the arguments of the processes after --; see --help"
    ;;
esac
TPU_POLL=${TPU_POLL:-30}
positive --poll "$TPU_POLL"
[[ ${DRY_RUN:-} == yes ]] || command -v gcloud > /dev/null || die "gcloud is not installed; see cloud.google.com/sdk"

where=("--zone=$TPU_ZONE")
[[ -z ${TPU_PROJECT:-} ]] || where+=("--project=$TPU_PROJECT")

tpus() { run gcloud compute tpus "$@" "${where[@]}"; }
on_hosts() { tpus tpu-vm ssh "$TPU_NAME" "--worker=$1" "--command=$2"; }
say() { printf 'tpu_pod.sh: %s\n' "$1" >&2; }

describe() {
  if [[ ${TPU_QUEUED:-} == yes ]]; then
    tpus queued-resources describe "$TPU_NAME" '--format=value(state.state)'
  else
    tpus tpu-vm describe "$TPU_NAME" '--format=value(state)'
  fi
}

# Print the state. Empty: no such TPU (a dry run assumes this). UNKNOWN: gcloud failed and printed the reason.
state() {
  local answer
  [[ ${DRY_RUN:-} != yes ]] || return 0
  if answer=$(describe 2>&1); then
    tail -n 1 <<< "$answer"
  elif [[ $answer != *NOT_FOUND* ]]; then
    printf '%s\n' "$answer" >&2
    printf 'UNKNOWN\n'
  fi
}

create() {
  local extra=() now
  read -ra extra <<< "${TPU_CREATE_ARGS:-}"
  [[ ${TPU_SPOT:-} != yes ]] || extra+=(--spot)
  now=$(state)
  case $now in
    READY | ACTIVE) say "reusing the existing $TPU_NAME" && return ;;
    PREEMPTED | TERMINATED | SUSPENDED | FAILED)
      say "$TPU_NAME is $now; replacing it"
      delete
      now=""
      ;;
    STOPPED) tpus tpu-vm start "$TPU_NAME" ;;
    UNKNOWN) die "the state of $TPU_NAME is unknown" ;;
  esac
  if [[ -z $now && ${TPU_QUEUED:-} == yes ]]; then
    tpus queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--accelerator-type=$TPU_TYPE" \
      "--runtime-version=$TPU_RUNTIME" ${extra[@]+"${extra[@]}"}
  elif [[ -z $now ]]; then
    tpus tpu-vm create "$TPU_NAME" "--accelerator-type=$TPU_TYPE" "--version=$TPU_RUNTIME" ${extra[@]+"${extra[@]}"}
  fi
  [[ ${DRY_RUN:-} != yes ]] || return 0
  while now=$(state) && [[ $now != READY && $now != ACTIVE ]]; do
    [[ $now != FAILED ]] || die "$TPU_NAME: FAILED; for the reason run gcloud compute tpus queued-resources describe"
    say "$TPU_NAME is ${now:-not created yet}"
    sleep "$TPU_POLL"
  done
}

copy() {
  local packed
  packed=$(mktemp "${TMPDIR:-/tmp}/histojax.XXXXXX")
  # shellcheck disable=SC2064
  trap "rm -f '$packed'" EXIT
  run tar -czf "$packed" -C "$HERE/.." --exclude=__pycache__ \
    pyproject.toml README.md LICENSE histojax data_pipelines configs launch
  tpus tpu-vm scp "$packed" "$TPU_NAME:histojax.tar.gz" --worker=all
  on_hosts all 'mkdir -p histojax && tar -xzf histojax.tar.gz -C histojax'
}

install() { # uv provides a Python that the hosts' system lacks
  on_hosts all "cd histojax && export PATH=\$HOME/.local/bin:\$PATH && \
{ command -v uv > /dev/null || python3 -m pip install --user -q uv; } && \
uv venv -q --allow-existing --python ${TPU_PYTHON:-3.12} .venv && uv pip install -q --python .venv/bin/python -e '.[tpu]'"
}

installed() { on_hosts all 'test -x histojax/.venv/bin/python' > /dev/null 2>&1; }

start() {
  local inner
  inner="trap : TERM; echo \$\$ > run.pid; HISTOJAX_CLUSTER=tpu $(quoted .venv/bin/python -m \
    "${TPU_MODULE:-histojax.main}" "${args[@]}") >> run.log 2>&1; echo \$? > run.code"
  on_hosts all "cd histojax && if [ -f run.pid ] && [ ! -f run.code ] && kill -0 \$(cat run.pid) 2> /dev/null; \
then echo already running; else rm -f run.code run.pid; setsid nohup bash -c $(quoted "$inner") < /dev/null > /dev/null 2>&1 & fi"
}

logs() {
  # shellcheck disable=SC2016 # expanded on the hosts
  on_hosts "${TPU_WORKER:-0}" 'cd histojax && for i in 1 2 3 4 5; do [ -f run.pid ] || sleep 1; done && \
tail -n 100 -F --pid=$(cat run.pid) run.log'
}

codes() { # one line per host: running, none, or its exit code
  # shellcheck disable=SC2016
  on_hosts all 'cat histojax/run.code 2> /dev/null || { kill -0 $(cat histojax/run.pid) && echo running || echo none; } \
2> /dev/null'
}

# shellcheck disable=SC2016
stop() { on_hosts all 'kill -TERM -- -$(cat histojax/run.pid)'; }

delete() {
  if [[ ${TPU_QUEUED:-} == yes ]]; then
    tpus queued-resources delete "$TPU_NAME" --force --quiet
  else
    tpus tpu-vm delete "$TPU_NAME" --quiet
  fi
}

resume() {
  local all failed
  while :; do
    create
    if [[ ${DRY_RUN:-} == yes ]] || ! installed; then copy; install; fi
    start
    [[ ${DRY_RUN:-} != yes ]] || return 0
    while :; do
      sleep "$TPU_POLL"
      [[ $(state) =~ ^(READY|ACTIVE|UNKNOWN)$ ]] || { say "$TPU_NAME is gone" && break; }
      all=$(codes | grep -xE "running|none|[0-9]+") || continue # a host was not reached: ask again
      ! grep -qx running <<< "$all" || continue
      failed=$(grep -vxE "0|none|$EXIT_RESUMABLE" <<< "$all" | head -n 1) || true
      if [[ -n $failed ]]; then
        say "a process failed ($failed); the last lines of each host:"
        on_hosts all 'hostname; tail -n 20 histojax/run.log'
        exit 1
      fi
      grep -qxE "none|$EXIT_RESUMABLE" <<< "$all" || { say "finished" && return 0; }
      say "interrupted; resuming" # none: the host was restarted
      break
    done
  done
}

# Not joined by &&, because that would disable set -e inside the functions.
case $verb in
  up)
    create
    copy
    install
    start
    logs
    ;;
  run) start ;;
  status)
    describe
    codes
    ;;
  *) "$verb" ;;
esac
