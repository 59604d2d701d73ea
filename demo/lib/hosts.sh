# shellcheck shell=bash
# The hosts of the experiment, with its own names and addresses.
#
#            segment A, 192.168.100.0/24                    segment B, 192.168.200.0/24 (closed)
#   vm01 .1 ───┬─────────── .2 eth0 [vm02] eth1 .2 ───────────┬─── .3 vm03
#              └─ gw-a .254                                   └─ gw-b .254

# Everything that the demo writes lies here, on a tmpfs of this world.
dir=/run/demo

on() {
  local host=$1
  shift
  ip netns exec "$host" "$@"
}

make_hosts() {
  mount --make-rprivate /
  mount -t tmpfs -o mode=755 demo /run
  mkdir -p "$dir" /run/lock /run/sshd
  export TMPDIR=$dir HOME=$dir
  ip link set lo up
  local host
  for host in vm01 vm02 vm03 gw-a gw-b; do
    ip netns add "$host"
    on "$host" ip link set lo up
    on "$host" sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0 \
      net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
  done
  sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1
  segment a vm01:eth0:192.168.100.1 vm02:eth0:192.168.100.2 gw-a:eth0:192.168.100.254
  segment b vm02:eth1:192.168.200.2 vm03:eth0:192.168.200.3 gw-b:eth0:192.168.200.254
  on vm01 ip route add default via 192.168.100.254
  on vm03 ip route add default via 192.168.200.254
  for host in gw-a gw-b; do
    on "$host" sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.send_redirects=0 net.ipv4.conf.eth0.send_redirects=0
  done
  # The way out of segment B exists: what stands between is the gateway alone.
  on gw-b ip route add 192.168.100.0/24 via 192.168.200.2
  foreign_rules
}

# segment NAME HOST:INTERFACE:ADDRESS...: puts hosts on one switch.
segment() {
  local name=$1 host interface address port=0
  shift
  ip link add "seg-$name" type bridge forward_delay 0
  ip link set "seg-$name" up
  while IFS=: read -r host interface address; do
    ip link add "seg-$name-$((++port))" type veth peer name "$interface" netns "$host"
    ip link set "seg-$name-$port" master "seg-$name" up
    on "$host" ip addr add "$address/24" dev "$interface"
    on "$host" ip link set "$interface" up
  done < <(printf '%s\n' "$@")
}

# The gateway is a node in use: somebody else has rules in its tables, and they have to be the same afterwards.
foreign_rules() {
  on vm02 iptables-restore <<'END'
*mangle
-A FORWARD -p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --clamp-mss-to-pmtu
COMMIT
*nat
:THEIRS - [0:0]
-A PREROUTING -d 203.0.113.7/32 -j THEIRS
-A THEIRS -j DNAT --to-destination 203.0.113.8
COMMIT
*filter
-A INPUT -p tcp -m tcp --dport 2222 -j REJECT
-A FORWARD -s 203.0.113.0/24 -j DROP
COMMIT
END
  on vm02 ip6tables -t mangle -A FORWARD -s 2001:db8::/32 -j DROP
}

# What an administrator sees of the gateway, without counters.
gateway_state() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  on vm02 bash -c '
    for tool in iptables ip6tables; do echo "# $tool"; $tool-save | grep -v "^#" | sed "s/\[[0-9]*:[0-9]*\]\$/[0:0]/"; done
    for what in "route show table all" rule "neigh show proxy" "-o addr"; do echo "# ip $what"; ip -4 $what; done
    echo "# settings"
    cd /proc/sys/net/ipv4 && grep -H . ip_forward conf/*/{forwarding,rp_filter,send_redirects,proxy_arp} neigh/*/proxy_delay'
}
