# shellcheck shell=bash
# What the launch scripts share: sourced by them, nothing to run. A script sets DRY_RUN=yes for a dry run.

# The comment at the head of a script is its help.
show_help() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"; }

die() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

# A command as one could type it.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/"'\\''"}'"
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

run() { if [[ ${DRY_RUN:-} == yes ]]; then quoted "$@"; else "$@"; fi; }

# need OPTION VARIABLE WHAT: ends the script where the setting is empty, and says what to give.
need() { [[ -n ${!2:-} ]] || die "$1 is missing: $3. Give $1 VALUE, or set $2 in the environment"; }

# The value of an option: `given "$@"` with the option and what follows it.
given() {
  [[ $# -ge 2 && $2 != -- ]] || die "$1 needs a value; see --help"
  printf '%s\n' "$2"
}

# positive OPTION VALUE: a whole number above 0.
positive() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 $2: a whole number above 0 is needed"; }
