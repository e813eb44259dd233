#!/usr/bin/env bash
# One run on a Cloud TPU of any size: the same command on all of its hosts.
#
#   launch/tpu_pod.sh up --name NAME --zone ZONE --type v5litepod-64 --runtime v2-alpha-tpuv5-lite \
#       -- --config FILE --workdir /shared/runs/a
#
# Verbs:
#   up        create, copy, install, run and logs, one after the other
#   create    a TPU VM, or a queued resource, and waits until it is there; one of that name is used again
#   copy      this source tree to all hosts
#   install   Python and the extra `tpu` there
#   run       starts the words behind -- on all hosts; they go on when the connection ends
#   logs      follows one host's output until its process ends (--worker, default 0)
#   status    state of the TPU; of each host: running, or the exit code
#   stop      SIGTERM to all processes: they save and end with 75
#   resume    until the run is finished: replaces a TPU that was preempted, and goes on after every 75
#   delete    the TPU, or the queued resource with it
#
# Options, or variables of the environment:
#   --name NAME        TPU_NAME
#   --zone ZONE        TPU_ZONE
#   --project ID       TPU_PROJECT       default: gcloud's own setting
#   --type TYPE        TPU_TYPE          accelerator type, as v5litepod-64
#   --runtime VERSION  TPU_RUNTIME       software of the hosts, as v2-alpha-tpuv5-lite
#   --spot             TPU_SPOT=yes      cheaper, and may be taken away at any time
#   --queued           TPU_QUEUED=yes    as a queued resource: waits until there is room
#   --create-args ARGS TPU_CREATE_ARGS   more for gcloud's create, as '--network=N --subnetwork=S'
#   --module MODULE    TPU_MODULE        what python -m runs; default histojax.main
#   --python VERSION   TPU_PYTHON        default 3.12
#   --worker N         TPU_WORKER        of logs; default 0
#   --poll SECONDS     TPU_POLL          between questions for the state; default 30
#   --dry-run                            prints the commands and changes nothing
#   --help                               this text
#
# A TPU that is taken away takes its disks along, and hosts have none in common: work directory and images lie on a
# path that every host has mounted, such as Filestore, or a bucket by gcsfuse; --create-args can name a start-up script
# that does it. gs:// paths are not read. It needs gcloud, logged in, with the TPU API on.

set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/functions.sh
source "$HERE/functions.sh"

TRY_AGAIN=75

verb=${1:-}
case $verb in
  -h | --help) show_help "$0" && exit 0 ;;
  up | create | copy | install | run | logs | status | stop | resume | delete) shift ;;
  *) die "unknown verb '$verb': up, create, copy, install, run, logs, status, stop, resume or delete; see --help" ;;
esac
while (($#)); do
  case $1 in
    --name) TPU_NAME=$(given "$@") && shift ;;
    --zone) TPU_ZONE=$(given "$@") && shift ;;
    --project) TPU_PROJECT=$(given "$@") && shift ;;
    --type) TPU_TYPE=$(given "$@") && shift ;;
    --runtime) TPU_RUNTIME=$(given "$@") && shift ;;
    --create-args) TPU_CREATE_ARGS=$(given "$@") && shift ;;
    --module) TPU_MODULE=$(given "$@") && shift ;;
    --python) TPU_PYTHON=$(given "$@") && shift ;;
    --worker) TPU_WORKER=$(given "$@") && shift ;;
    --poll) TPU_POLL=$(given "$@") && shift ;;
    --spot) TPU_SPOT=yes ;;
    --queued) TPU_QUEUED=yes ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) show_help "$0" && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; what the processes get stands behind --; see --help" ;;
  esac
  shift
done
words=("$@")

need --name TPU_NAME "what the TPU is called"
need --zone TPU_ZONE "where it is"
case $verb in
  up | create | resume)
    need --type TPU_TYPE "its accelerator type, as v5litepod-64"
    need --runtime TPU_RUNTIME "the software of its hosts, as v2-alpha-tpuv5-lite"
    ;;
esac
case $verb in
  up | run | resume)
    ((${#words[@]})) || die "nothing to run: what the processes get stands behind --; see --help"
    [[ " ${words[*]} " != *://* ]] || die "gs:// paths are not read: mount the bucket or Filestore on every host"
    ;;
esac
TPU_POLL=${TPU_POLL:-30}
positive --poll "$TPU_POLL"
[[ ${DRY_RUN:-} == yes ]] || command -v gcloud > /dev/null || die "gcloud is not installed: cloud.google.com/sdk"

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

# Empty: there is none, which is what a dry run supposes. UNKNOWN: gcloud could not tell, and said why.
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
    READY | ACTIVE) say "uses $TPU_NAME, which is there" && return ;;
    PREEMPTED | TERMINATED | SUSPENDED | FAILED)
      say "$TPU_NAME is $now: it is replaced"
      delete
      now=""
      ;;
    STOPPED) tpus tpu-vm start "$TPU_NAME" ;;
    UNKNOWN) die "the state of $TPU_NAME is not known" ;;
  esac
  if [[ -z $now && ${TPU_QUEUED:-} == yes ]]; then
    tpus queued-resources create "$TPU_NAME" "--node-id=$TPU_NAME" "--accelerator-type=$TPU_TYPE" \
      "--runtime-version=$TPU_RUNTIME" ${extra[@]+"${extra[@]}"}
  elif [[ -z $now ]]; then
    tpus tpu-vm create "$TPU_NAME" "--accelerator-type=$TPU_TYPE" "--version=$TPU_RUNTIME" ${extra[@]+"${extra[@]}"}
  fi
  [[ ${DRY_RUN:-} != yes ]] || return 0
  while now=$(state) && [[ $now != READY && $now != ACTIVE ]]; do
    [[ $now != FAILED ]] || die "$TPU_NAME: FAILED; gcloud compute tpus queued-resources describe says why"
    say "$TPU_NAME is ${now:-not there yet}"
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

install() { # uv brings the Python that the hosts' system lacks
  on_hosts all "cd histojax && export PATH=\$HOME/.local/bin:\$PATH && \
{ command -v uv > /dev/null || python3 -m pip install --user -q uv; } && \
uv venv -q --allow-existing --python ${TPU_PYTHON:-3.12} .venv && uv pip install -q --python .venv/bin/python -e '.[tpu]'"
}

installed() { on_hosts all 'test -x histojax/.venv/bin/python' > /dev/null 2>&1; }

start() {
  local inner
  inner="trap : TERM; echo \$\$ > run.pid; HISTOJAX_CLUSTER=tpu $(quoted .venv/bin/python -m \
    "${TPU_MODULE:-histojax.main}" "${words[@]}") >> run.log 2>&1; echo \$? > run.code"
  on_hosts all "cd histojax && if [ -f run.pid ] && [ ! -f run.code ] && kill -0 \$(cat run.pid) 2> /dev/null; \
then echo runs already; else rm -f run.code run.pid; setsid nohup bash -c $(quoted "$inner") < /dev/null > /dev/null 2>&1 & fi"
}

logs() {
  # shellcheck disable=SC2016 # the hosts expand it
  on_hosts "${TPU_WORKER:-0}" 'cd histojax && for i in 1 2 3 4 5; do [ -f run.pid ] || sleep 1; done && \
tail -n 100 -F --pid=$(cat run.pid) run.log'
}

codes() { # a line a host: running, none, or its exit code
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
      all=$(codes | grep -xE "running|none|[0-9]+") || continue # not reached: asked again
      ! grep -qx running <<< "$all" || continue
      failed=$(grep -vxE "0|none|$TRY_AGAIN" <<< "$all" | head -n 1) || true
      if [[ -n $failed ]]; then
        say "a process failed ($failed); the last lines of each host:"
        on_hosts all 'hostname; tail -n 20 histojax/run.log'
        exit 1
      fi
      grep -qxE "none|$TRY_AGAIN" <<< "$all" || { say "finished" && return 0; }
      say "stopped from outside; goes on" # none: the host was started anew
      break
    done
  done
}

# Not joined by &&, which would switch off set -e inside the functions.
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
