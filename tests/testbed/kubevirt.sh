#!/usr/bin/env bash
# Makes the definitions of KubeVirt's VirtualMachine and VirtualMachineInstance out of its Go types, pinned in kubevirt/, and prints the folder that holds them.
# KubeVirt publishes no definitions by themselves: its operator makes them when it is installed. Kept as build.sh keeps its programs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${STAGENET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagenet}
pins=$(cat "$here"/kubevirt/{go.mod,go.sum,kinds.go} "$0" | sha256sum | cut -c1-12)
out=$cache/kubevirt-$pins
mkdir -p "$out"
exec 9>"$out/.lock"
flock 9
if ! [ -d "$out/crds" ]; then
  echo "making KubeVirt's definitions (once; kept in $out)" >&2
  rm -rf "$out/all" "$out/.new"
  mkdir "$out/.new"
  (cd "$here/kubevirt" && go tool controller-gen crd:maxDescLen=0,generateEmbeddedObjectMeta=true,allowDangerousTypes=true \
    paths=kubevirt.io/api/core/v1 output:crd:dir="$out/all")
  # As KubeVirt installs them, a VirtualMachine has its status as a subresource and a VirtualMachineInstance has not; the generator says it of neither.
  sed 's/^  - name: v1$/&\n    subresources:\n      status: {}/' "$out/all/kubevirt.io_virtualmachines.yaml" >"$out/.new/virtualmachines.yaml"
  grep -q '^    subresources:' "$out/.new/virtualmachines.yaml"
  cp "$out/all/kubevirt.io_virtualmachineinstances.yaml" "$out/.new/virtualmachineinstances.yaml"
  rm -r "$out/all"
  mv "$out/.new" "$out/crds"
fi
echo "$out/crds"
