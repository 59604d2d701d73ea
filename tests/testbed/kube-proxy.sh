#!/usr/bin/env bash
# Builds the kube-proxy that `make bench-kube-proxy` compares with, from the Go modules pinned in kube-proxy/, and prints the folder that holds it.
# Nothing else needs it, so it is no part of build.sh. Kept as build.sh keeps its programs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${STAGENET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagenet}
version=$(sed -n 's/.*k8s.io\/kubernetes v\([0-9.]*\).*/\1/p' "$here/kube-proxy/go.mod" | head -n 1)
pins=$(cat "$here"/kube-proxy/go.{mod,sum} "$0" | sha256sum | cut -c1-12)
bin=$cache/kube-proxy-$pins
mkdir -p "$bin"
exec 9>"$bin/.lock"
flock 9
if ! [ -x "$bin/kube-proxy" ]; then
  echo "building kube-proxy (once; kept in $bin)" >&2
  v=k8s.io/component-base/version
  minor=${version#1.}
  stamp="-X $v.gitVersion=v$version -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean"
  (cd "$here/kube-proxy" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $stamp" -o "$bin/.kube-proxy.new" k8s.io/kubernetes/cmd/kube-proxy)
  mv "$bin/.kube-proxy.new" "$bin/kube-proxy"
fi
echo "$bin"
