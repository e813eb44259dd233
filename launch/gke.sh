#!/usr/bin/env bash
# Start one run on Google Kubernetes Engine, from the template launch/gke_jobset.yaml.
#
#   launch/gke.sh apply --name NAME --image IMAGE --nodes 2 --gpus 8 --accelerator nvidia-h100-80gb --spot \
#       --claim CLAIM -- --config configs/dala_resnet50_breakhis.py --workdir /shared/runs/a \
#       --config.data.root=/shared/BreaKHis_v1.tar.gz
#   launch/gke.sh apply --name NAME --image IMAGE --nodes 16 --tpus 4 --accelerator tpu-v5-lite-podslice \
#       --topology 8x8 --claim CLAIM -- --config FILE --workdir /shared/runs/a
#
# Verbs:
#   apply     start the run; after it has ended, delete and apply again to resume from its last checkpoint
#   render    print the YAML
#   status    show the JobSet and its pods
#   logs      follow the output of all pods
#   delete    delete the JobSet and its pods; they get SIGTERM and save first
#
# Options, each with the environment variable that sets its default:
#   --name NAME          GKE_NAME          name of the JobSet
#   --image IMAGE        GKE_IMAGE         built from launch/Dockerfile.cuda or .tpu, in a registry that the nodes can pull from
#   --nodes N            GKE_NODES         number of nodes; one pod with one process on each
#   --gpus N             GKE_GPUS          GPUs per node, or
#   --tpus N             GKE_TPUS          TPU chips per node
#   --accelerator TYPE   GKE_ACCELERATOR   value of the node label gke-accelerator or gke-tpu-accelerator
#   --topology AxB       GKE_TOPOLOGY      TPUs only: value of the node label gke-tpu-topology
#   --spot               GKE_SPOT=yes      use spot nodes, which may be preempted at any time
#   --claim NAME         GKE_CLAIM         a PersistentVolumeClaim (ReadWriteMany), mounted at /shared
#   --account NAME       GKE_ACCOUNT       Kubernetes service account, by which pods reach a bucket
#   --max-restarts N     GKE_MAX_RESTARTS  restarts after exit code 75 or a lost node; default 100
#   --namespace NAME     GKE_NAMESPACE     namespace; default: kubectl's setting
#   --dry-run                              print the commands and change nothing
#   --help                                 print this text
#
# Put the work directory and the images in a bucket (gs://BUCKET/PATH), which --account lets the pods write to, or below
# /shared, the only disk that all pods share.

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
    --name) GKE_NAME=$(option_value "$@") && shift ;;
    --image) GKE_IMAGE=$(option_value "$@") && shift ;;
    --nodes) GKE_NODES=$(option_value "$@") && shift ;;
    --gpus) GKE_GPUS=$(option_value "$@") && shift ;;
    --tpus) GKE_TPUS=$(option_value "$@") && shift ;;
    --accelerator) GKE_ACCELERATOR=$(option_value "$@") && shift ;;
    --topology) GKE_TOPOLOGY=$(option_value "$@") && shift ;;
    --claim) GKE_CLAIM=$(option_value "$@") && shift ;;
    --account) GKE_ACCOUNT=$(option_value "$@") && shift ;;
    --max-restarts) GKE_MAX_RESTARTS=$(option_value "$@") && shift ;;
    --namespace) GKE_NAMESPACE=$(option_value "$@") && shift ;;
    --spot) GKE_SPOT=yes ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) show_help "$0" && exit 0 ;;
    --) shift && break ;;
    *) die "unknown option $1; put the arguments of the processes after --; see --help" ;;
  esac
  shift
done
args=("$@")

need --name GKE_NAME "the name of the JobSet"
[[ $GKE_NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || die "--name $GKE_NAME: use lower-case letters, digits and -, at most 40"

kube=(kubectl)
[[ -z ${GKE_NAMESPACE:-} ]] || kube+=("--namespace=$GKE_NAMESPACE")
[[ ${DRY_RUN:-} == yes || $verb == render ]] || command -v kubectl > /dev/null || die "kubectl is not installed"

# plain OPTION VALUE: end the script if the value needs quotes in YAML or could add lines to it.
plain() { [[ $2 =~ ^[A-Za-z0-9][A-Za-z0-9_.:/@-]*$ ]] || die "$1 '$2': use letters, digits and _.:/@- only"; }

render() {
  need --image GKE_IMAGE "the container image"
  need --nodes GKE_NODES "the number of nodes"
  need --accelerator GKE_ACCELERATOR "the accelerator label of the nodes, such as nvidia-h100-80gb or tpu-v5-lite-podslice"
  positive --nodes "$GKE_NODES"
  positive --max-restarts "${GKE_MAX_RESTARTS:-100}"
  plain --image "$GKE_IMAGE"
  plain --accelerator "$GKE_ACCELERATOR"
  ((${#args[@]})) || die "nothing to run: put the arguments of the processes after --; see --help"
  local chips keep
  if [[ -n ${GKE_GPUS:-} && -z ${GKE_TPUS:-} ]]; then
    chips=$GKE_GPUS keep=" gpu "
    positive --gpus "$chips"
  elif [[ -n ${GKE_TPUS:-} && -z ${GKE_GPUS:-} ]]; then
    chips=$GKE_TPUS keep=" tpu "
    positive --tpus "$chips"
    need --topology GKE_TOPOLOGY "the topology of the TPU slice, such as 4x4"
    plain --topology "$GKE_TOPOLOGY"
  else
    die "pass either --gpus N or --tpus N, the number per node"
  fi
  [[ ${GKE_SPOT:-} != yes ]] || keep+="spot "
  if [[ -n ${GKE_CLAIM:-} ]]; then
    plain --claim "$GKE_CLAIM"
    keep+="claim "
  else
    keep+="no-claim "
    [[ " ${args[*]} " == *://* ]] || printf 'warning: without --claim the pods share no disk; gs:// needs none\n' >&2
  fi
  if [[ -n ${GKE_ACCOUNT:-} ]]; then
    plain --account "$GKE_ACCOUNT"
    keep+="account "
  fi

  local line arg tag
  while IFS= read -r line; do
    if [[ $line =~ ^(.*[^ ])\ *\#\[([a-z-]+)\]$ ]]; then
      line=${BASH_REMATCH[1]} tag=${BASH_REMATCH[2]}
      [[ $keep == *" $tag "* ]] || continue
    fi
    [[ $line != '#'* ]] || continue # comments of the template itself
    if [[ $line == *__ARGS__ ]]; then # each argument as a single-quoted YAML string
      for arg in "${args[@]}"; do
        [[ $arg != *[[:cntrl:]]* ]] || die "an argument contains a line end or control character: $arg"
        arg=${arg//"\$("/"\$\$("} # Kubernetes would expand $(…) as a variable
        printf "%s'%s'\n" "${line%__ARGS__}" "${arg//\'/"''"}"
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
