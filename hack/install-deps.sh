#!/usr/bin/env bash
# Installs what the build, the tests and the demo need and the machine lacks. Quick when nothing is missing.
#
#   hack/install-deps.sh [build|test|demo]...      default: all
#
# Debian packages come from apt, without recommendations; no service that a package brings is started. cargo-deny is
# built once into $STAGENET_CACHE (default: $XDG_CACHE_HOME/stagenet or ~/.cache/stagenet).
set -euo pipefail
cache=${STAGENET_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagenet}
cargo_deny=0.20.2

# command:package; a path stands for a file that has to be there.
build=(gcc:gcc /usr/include/string.h:libc6-dev)
lab=(iptables-nft:iptables iptables-legacy:iptables ip:iproute2 conntrack:conntrack ping:iputils-ping unshare:util-linux mount:mount)
test=("${lab[@]}" shellcheck:shellcheck git:git ps:procps openssl:openssl tcpdump:tcpdump
  vsftpd:vsftpd curl:curl lftp:lftp in.tftpd:tftpd-hpa tftp:tftp-hpa sipp:sip-tester)
demo=("${lab[@]}" curl:curl tcpdump:tcpdump sshd:openssh-server ssh:openssh-client nginx:nginx openssl:openssl dnsmasq:dnsmasq-base dig:bind9-dnsutils
  mariadbd:mariadb-server-core mariadb:mariadb-client-core)

[ $# -gt 0 ] || set -- build test demo
wanted=()
for set in "$@"; do
  case $set in
    build) wanted+=("${build[@]}") ;;
    test) wanted+=("${test[@]}") ;;
    demo) wanted+=("${demo[@]}") ;;
    *) echo "$0: no set called $set; there are: build test demo" >&2 && exit 2 ;;
  esac
done

export PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
missing=()
for entry in "${wanted[@]}"; do
  thing=${entry%:*}
  case $thing in
    /*) [ -e "$thing" ] ;;
    *) command -v "$thing" >/dev/null ;;
  esac || missing+=("${entry##*:}")
done

install_packages() {
  local stubs
  stubs=$(mktemp -d)
  # Maintainer scripts find these first, so that a package installed for its program does not start its daemon.
  for name in invoke-rc.d deb-systemd-invoke systemctl start-stop-daemon; do
    printf '#!/bin/sh\nexit 0\n' >"$stubs/$name"
    chmod 755 "$stubs/$name"
  done
  local apt=(apt-get -q -y -o "DPkg::Path=$stubs:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 --no-install-recommends install "$@")
  local failed=0
  DEBIAN_FRONTEND=noninteractive "${apt[@]}" || {
    # The package lists may be missing or old: that is the usual reason, and the only one that can be helped here.
    apt-get -q -y -o DPkg::Lock::Timeout=600 update
    DEBIAN_FRONTEND=noninteractive "${apt[@]}" || failed=$?
  }
  rm -r "$stubs"
  return "$failed"
}

if [ ${#missing[@]} -gt 0 ]; then
  mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]}; install these packages (Debian's names), or run as root on Debian" >&2
    exit 1
  fi
  echo "installing ${missing[*]}"
  # Two runs side by side: one installs, the other waits and finds it done.
  mkdir -p "$cache"
  (
    flock 9
    install_packages "${missing[@]}"
  ) 9>"$cache/.apt.lock" >"$cache/apt.log" 2>&1 || {
    tail -n 40 "$cache/apt.log" >&2
    exit 1
  }
fi

case " $* " in
  *" test "*)
    if [ ! -x "$cache/cargo-deny-$cargo_deny/bin/cargo-deny" ]; then
      echo "building cargo-deny $cargo_deny (once; kept in $cache)"
      mkdir -p "$cache"
      (
        flock 9
        [ -x "$cache/cargo-deny-$cargo_deny/bin/cargo-deny" ] ||
          CARGO_TARGET_DIR=$cache/cargo-deny-build cargo install --quiet --locked --root "$cache/cargo-deny-$cargo_deny" --version "$cargo_deny" cargo-deny
        rm -rf "$cache/cargo-deny-build"
      ) 9>"$cache/.cargo-deny.lock"
    fi
    ;;
esac
