#!/usr/bin/env bash
# Builds what the labs about status judge with, from the Go modules pinned in judges/ and faults/, and prints the folder that holds the
# programs: `judges` (kstatus and Flux' checker of conditions) and `faults` (a proxy that does bad things). Kept as build.sh keeps its programs, but
# under a name of its own: a change of theirs builds no control plane anew.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${STAGENET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagenet}
pins=$(cat "$here"/judges/{go.mod,go.sum,main.go} "$here"/faults/{go.mod,main.go} "$0" | sha256sum | cut -c1-12)
bin=$cache/judges-$pins
mkdir -p "$bin"
exec 9>"$bin/.lock"
flock 9
for program in judges faults; do
  [ -x "$bin/$program" ] && continue
  echo "building $program (once; kept in $bin)" >&2
  (cd "$here/$program" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o "$bin/.$program.new" .)
  mv "$bin/.$program.new" "$bin/$program"
done
echo "$bin"
