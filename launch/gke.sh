#!/usr/bin/env bash
# One run on Google Kubernetes Engine, from launch/gke_jobset.yaml.
#
#   launch/gke.sh apply --name NAME --image IMAGE --nodes 2 --gpus 8 --accelerator nvidia-h100-80gb --spot \
#       --claim CLAIM -- --config configs/dala_resnet50_breakhis.py --workdir /shared/runs/a
#   launch/gke.sh apply --name NAME --image IMAGE --nodes 16 --tpus 4 --accelerator tpu-v5-lite-podslice \
#       --topology 8x8 --claim CLAIM -- --config FILE --workdir /shared/runs/a
#
# Verbs:
#   apply     starts the run; after it has ended, delete and apply go on from its last checkpoint
#   render    prints the YAML
#   status    of the JobSet and its pods
#   logs      follows all pods
#   delete    the JobSet and its pods; SIGTERM saves first
#
# Options, or variables of the environment:
#   --name NAME          GKE_NAME          of the JobSet
#   --image IMAGE        GKE_IMAGE         built from launch/Dockerfile.cuda or Dockerfile.tpu, pushed where nodes find it
#   --nodes N            GKE_NODES         a pod and a process each
#   --gpus N             GKE_GPUS          of a node; or
#   --tpus N             GKE_TPUS          chips of a node
#   --accelerator TYPE   GKE_ACCELERATOR   the node label gke-accelerator or gke-tpu-accelerator
#   --topology AxB       GKE_TOPOLOGY      of TPUs: the node label gke-tpu-topology
#   --spot               GKE_SPOT=yes      nodes that may be taken away at any time
#   --claim NAME         GKE_CLAIM         a PersistentVolumeClaim (ReadWriteMany), mounted at /shared
#   --account NAME       GKE_ACCOUNT       Kubernetes service account, as the driver of a mounted bucket wants it
#   --max-restarts N     GKE_MAX_RESTARTS  default 100
#   --namespace NAME     GKE_NAMESPACE     default: kubectl's own setting
#   --dry-run                              prints the commands and changes nothing
#   --help                                 this text
#
# Work directory and images lie below /shared: pods have nothing else in common. gs:// paths are not read; a bucket can be
# a claim, by the Cloud Storage FUSE driver.

set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
# shellcheck source=launch/functions.sh
source "$HERE/functions.sh"

verb=${1:-}
case $verb in
  -h | --help) show_help "$0" && exit 0 ;;
  apply | render | status | logs | delete) shift ;;
  *) die "unknown verb '$verb': apply, render, status, logs or delete; see --help" ;;
esac
while (($#)); do
  case $1 in
    --name) GKE_NAME=$(given "$@") && shift ;;
    --image) GKE_IMAGE=$(given "$@") && shift ;;
    --nodes) GKE_NODES=$(given "$@") && shift ;;
    --gpus) GKE_GPUS=$(given "$@") && shift ;;
    --tpus) GKE_TPUS=$(given "$@") && shift ;;
    --accelerator) GKE_ACCELERATOR=$(given "$@") && shift ;;
    --topology) GKE_TOPOLOGY=$(given "$@") && shift ;;
    --claim) GKE_CLAIM=$(given "$@") && shift ;;
    --account) GKE_ACCOUNT=$(given "$@") && shift ;;
    --max-restarts) GKE_MAX_RESTARTS=$(given "$@") && shift ;;
    --namespace) GKE_NAMESPACE=$(given "$@") && shift ;;
    --spot) GKE_SPOT=yes ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) show_help "$0" && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; what the processes get stands behind --; see --help" ;;
  esac
  shift
done
words=("$@")

need --name GKE_NAME "what the JobSet is called"
[[ $GKE_NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "--name $GKE_NAME: small letters, digits and -, at most 40"

kube=(kubectl)
[[ -z ${GKE_NAMESPACE:-} ]] || kube+=("--namespace=$GKE_NAMESPACE")
[[ ${DRY_RUN:-} == yes || $verb == render ]] || command -v kubectl > /dev/null || die "kubectl is not installed"

# plain OPTION VALUE: what needs no quotes in YAML, and cannot bring lines of its own.
plain() { [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9_.:/@-]*$ ]] || die "$1 '$2': letters, digits and _.:/@- only"; }

render() {
  need --image GKE_IMAGE "the container image"
  need --nodes GKE_NODES "how many nodes"
  need --accelerator GKE_ACCELERATOR "the nodes' label, as nvidia-h100-80gb or tpu-v5-lite-podslice"
  positive --nodes "$GKE_NODES"
  positive --max-restarts "${GKE_MAX_RESTARTS:-100}"
  plain --image "$GKE_IMAGE"
  plain --accelerator "$GKE_ACCELERATOR"
  ((${#words[@]})) || die "nothing to run: what the processes get stands behind --; see --help"
  local chips keep
  if [[ -n ${GKE_GPUS:-} && -z ${GKE_TPUS:-} ]]; then
    chips=$GKE_GPUS keep=" gpu "
    positive --gpus "$chips"
  elif [[ -n ${GKE_TPUS:-} && -z ${GKE_GPUS:-} ]]; then
    chips=$GKE_TPUS keep=" tpu "
    positive --tpus "$chips"
    need --topology GKE_TOPOLOGY "of the TPU slice, as 4x4"
    plain --topology "$GKE_TOPOLOGY"
  else
    die "give either --gpus N or --tpus N, of a node"
  fi
  [[ ${GKE_SPOT:-} != yes ]] || keep+="spot "
  [[ " ${words[*]} " != *://* ]] || die "gs:// paths are not read: mount the bucket as a volume, see --claim"
  if [[ -n ${GKE_CLAIM:-} ]]; then
    plain --claim "$GKE_CLAIM"
    keep+="claim "
  else
    keep+="no-claim "
    printf 'warning: no --claim; pods have no disk in common\n' >&2
  fi
  if [[ -n ${GKE_ACCOUNT:-} ]]; then
    plain --account "$GKE_ACCOUNT"
    keep+="account "
  fi

  local line word tag
  while IFS= read -r line; do
    if [[ $line =~ ^(.*[^ ])\ *\#\[([a-z-]+)\]$ ]]; then
      line=${BASH_REMATCH[1]} tag=${BASH_REMATCH[2]}
      [[ $keep == *" $tag "* ]] || continue
    fi
    [[ $line != '#'* ]] || continue # the template's own explanation
    if [[ $line == *__ARGS__ ]]; then # each word as YAML's single-quoted text
      for word in "${words[@]}"; do
        [[ $word != *[[:cntrl:]]* ]] || die "a line end or control character in $word"
        word=${word//"\$("/"\$\$("} # which Kubernetes would take for a variable
        printf "%s'%s'\n" "${line%__ARGS__}" "${word//\'/"''"}"
      done
      continue
    fi
    line=${line//__NAME__/"$GKE_NAME"}
    line=${line//__IMAGE__/"$GKE_IMAGE"}
    line=${line//__NODES__/"$GKE_NODES"}
    line=${line//__CHIPS__/"$chips"}
    line=${line//__ACCELERATOR__/"$GKE_ACCELERATOR"}
    line=${line//__TOPOLOGY__/"${GKE_TOPOLOGY:-}"}
    line=${line//__CLAIM__/"${GKE_CLAIM:-}"}
    line=${line//__ACCOUNT__/"${GKE_ACCOUNT:-}"}
    line=${line//__MAX_RESTARTS__/"${GKE_MAX_RESTARTS:-100}"}
    printf '%s\n' "$line"
  done < "$HERE/gke_jobset.yaml"
}

selector="jobset.sigs.k8s.io/jobset-name=$GKE_NAME"
case $verb in
  render) render ;;
  apply)
    yaml=$(render)
    if [[ ${DRY_RUN:-} == yes ]]; then
      printf '# %s\n%s\n' "$(quoted "${kube[@]}" apply -f -)" "$yaml"
    else
      "${kube[@]}" apply -f - <<< "$yaml"
    fi
    ;;
  status)
    run "${kube[@]}" get jobset "$GKE_NAME"
    run "${kube[@]}" get pods -o wide -l "$selector"
    ;;
  logs) run "${kube[@]}" logs -f --prefix --tail=100 --max-log-requests=256 -l "$selector" ;;
  delete) run "${kube[@]}" delete jobset "$GKE_NAME" ;;
esac
