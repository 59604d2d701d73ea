# shellcheck shell=bash
# How the demo speaks, and how it keeps count of what did not hold.

FAILED=0
bold='' dim='' green='' red='' plain=''
if [ -n "${COLOUR:-}" ]; then
  bold=$'\e[1m' dim=$'\e[2m' green=$'\e[32m' red=$'\e[31m' plain=$'\e[0m'
fi

section() { printf '\n%s%s%s\n' "$bold" "$1" "$plain"; }
note() { printf '  %s\n' "$*"; }
# Shows text as it came, set back from what the demo itself says.
quote() { sed "s/^/    $dim/; s/\$/$plain/"; }

# check WHAT COMMAND...: says whether COMMAND succeeded, and remembers if not.
check() {
  local what=$1
  shift
  if "$@"; then
    printf '  %sok%s    %s\n' "$green" "$plain" "$what"
  else
    printf '  %sFAILED%s %s\n' "$red" "$plain" "$what"
    FAILED=1
  fi
}

not() { ! "$@"; }
quietly() { "$@" >/dev/null 2>&1; }
# into FILE COMMAND...: keeps what COMMAND says, for showing it later.
into() {
  local file=$1
  shift
  "$@" >"$file" 2>&1
}

# within SECONDS COMMAND...: repeats COMMAND until it succeeds.
within() {
  local end=$((SECONDS + $1 + 1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$end" ] || return 1
    sleep 0.05
  done
}

verdict() {
  local took
  JUDGED=1
  took=$(awk -v a="$STARTED" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }')
  if [ "$FAILED" = 0 ]; then
    printf '\n%sAll is as it should be.%s (%s s)\n' "$green" "$plain" "$took"
  else
    printf '\n%sNot all is as it should be: see the lines that say FAILED.%s (%s s)\n' "$red" "$plain" "$took"
    [ ! -e "$dir/agent.log" ] || { echo "The agent said:" && quote <"$dir/agent.log"; }
  fi
  return "$FAILED"
}
