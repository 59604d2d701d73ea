#!/usr/bin/env bash
# Builds the real control plane that the API labs run against (etcd, kube-apiserver, kube-controller-manager, kubectl)
# from the Go modules pinned in this folder, and prints the folder that holds the binaries.
#
#   tests/testbed/build.sh          build what is missing, print the folder
#
# The result is kept outside the work tree, in $STAGENET_CACHE (default: $XDG_CACHE_HOME/stagenet or ~/.cache/stagenet),
# under a name made from the pins, so that a change of version never meets an old binary.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${STAGENET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagenet}
version=$(sed -n 's/.*k8s.io\/kubernetes v\([0-9.]*\).*/\1/p' "$here/kubernetes/go.mod" | head -n 1)
pins=$(cat "$here"/{kubernetes,etcd}/go.{mod,sum} "$0" | sha256sum | cut -c1-12)
bin=$cache/testbed-$pins
mkdir -p "$bin"

# Two builds side by side (two clones, two test runs) wait for each other instead of doing the work twice.
exec 9>"$bin/.lock"
flock 9

build() { # module-folder package output ldflags
  [ -x "$bin/$3" ] && return
  echo "building $3 (once; kept in $bin)" >&2
  (cd "$here/$1" && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w $4" -o "$bin/.$3.new" "$2")
  mv "$bin/.$3.new" "$bin/$3"
}

v=k8s.io/component-base/version
minor=${version#1.}
stamp="-X $v.gitVersion=v$version -X $v.gitMajor=1 -X $v.gitMinor=${minor%%.*} -X $v.gitTreeState=clean"
build etcd go.etcd.io/etcd/server/v3 etcd ""
for command in kube-apiserver kube-controller-manager kubectl; do
  build kubernetes "k8s.io/kubernetes/cmd/$command" "$command" "$stamp"
done
echo "$bin"
