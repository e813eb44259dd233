# shellcheck shell=bash
# Functions that the launch scripts share; not a program. A script sets DRY_RUN=yes for a dry run.

# Print the comment at the head of a script, which is its help.
show_help() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$1"; }

die() {
  printf 'error: %s\n' "$1" >&2
  exit 1
}

# Print a command quoted so that it can be pasted into a shell.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ $word =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || word="'${word//\'/"'\\''"}'"
    line+="$word "
  done
  printf '%s\n' "${line% }"
}

run() { if [[ ${DRY_RUN:-} == yes ]]; then quoted "$@"; else "$@"; fi; }

# need OPTION VARIABLE MEANING: end the script with a message if the setting is empty.
need() { [[ -n ${!2:-} ]] || die "$1 is missing: $3. Pass $1 VALUE or set $2 in the environment"; }

# Print the value of an option: `option_value "$@"`, called with the option and the arguments after it.
option_value() {
  [[ $# -ge 2 && $2 != -- ]] || die "$1 needs a value; see --help"
  printf '%s\n' "$2"
}

# positive OPTION VALUE: end the script if the value is not a whole number above 0.
positive() { [[ $2 =~ ^[1-9][0-9]*$ ]] || die "$1 $2: must be a whole number above 0"; }
