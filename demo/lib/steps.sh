# shellcheck shell=bash
# What the experiment showed, step by step.

VIP=192.168.100.3

step_before() {
  section "Before: nobody answers for $VIP"
  note "vm01 (192.168.100.1) wants to reach the restored VM vm03, which lives in a closed network as 192.168.200.3."
  gateway_state >"$dir/before"
  watch before vm01 eth0 arp
  check "vm01 pings $VIP in vain" not quietly on vm01 ping -n -c 1 -W 1 "$VIP"
  unwatch before
  seen before | quote
  check "vm01's ARP requests are sent" grep -q "Request who-has $VIP tell 192.168.100.1" "$dir/before.pcap.txt"
  check "and go unanswered" not grep -q "Reply $VIP" "$dir/before.pcap.txt"
  on vm01 ip neigh flush dev eth0
}

step_agent() {
  section "The agent starts on vm02, the gateway, with the two files of examples/seed"
  cp -r "$demo/../examples/seed" "$dir/manifests"
  grep -hv '^ *#' "$dir"/manifests/*mapping* | quote
  ip netns exec vm02 "$STAGENET" agent --manifests "$dir/manifests" --node vm02 --status-file "$dir/status" >"$dir/agent.log" 2>&1 &
  echo $! >"$dir/agent.pid"
  check "it converges" within 15 try_ping
  quote <"$dir/agent.log"
  note "and this is what it says with --once:"
  check "every claim is Ready" into "$dir/once" on vm02 "$STAGENET" agent --manifests "$dir/manifests" --node vm02 --once
  quote <"$dir/once"
}

step_after() {
  section "After: $VIP answers, and no host owns it"
  on vm01 ip neigh flush dev eth0
  watch after vm01 eth0 arp
  on vm01 ping -n -c 2 -i 0.2 -W 1 "$VIP" >"$dir/ping" || true
  unwatch after
  seen after | quote
  quote <"$dir/ping"
  local mac host
  mac=$(on vm02 cat /sys/class/net/eth0/address)
  check "the gateway answers ARP for it ($mac)" grep -q "Reply $VIP is-at $mac" "$dir/after.pcap.txt"
  check "ping is answered" grep -q ' 0% packet loss' "$dir/ping"
  for host in vm01 vm02 vm03 gw-a gw-b; do
    on "$host" ip -4 -o addr
  done >"$dir/addresses"
  check "no interface of any host has the address" not grep -q " $VIP/" "$dir/addresses"
}

# The first packet of a connection and its answer, at four places.
step_hops() {
  section "Hop by hop: a web request from vm01, as captured"
  local filter='tcp port 80 and tcp[tcpflags] & tcp-syn != 0' place
  watch hop1 vm01 eth0 "$filter"
  watch hop2 vm02 eth0 "$filter"
  watch hop3 vm02 eth1 "$filter"
  watch hop4 vm03 eth0 "$filter"
  within 5 try_http || true
  unwatch hop1 hop2 hop3 hop4
  printf '    %-12s  %-50s  %s\n' 'seen at' 'request' 'answer'
  for place in 'hop1 vm01 eth0' 'hop2 vm02 eth0' 'hop3 vm02 eth1' 'hop4 vm03 eth0'; do
    read -r hop where <<<"$place"
    printf '    %-12s  %-50s  %s\n' "$where" "$(endpoints "$hop" S)" "$(endpoints "$hop" S.)"
  done
  check "outside: the client's own address and $VIP" as_expected '192.168.100.1 192.168.100.3' hop1 hop2
  check "inside: the gateway's address and vm03's own" as_expected '192.168.200.2 192.168.200.3' hop3 hop4
}

# endpoints NAME FLAGS: "CLIENT.PORT > SERVER.PORT" of the first packet with these TCP flags.
endpoints() {
  awk -v flags="[$2]," '$5 == "Flags" && $6 == flags && !n++ { sub(":$", "", $4); print $2, $3, $4 }' "$dir/$1.pcap.txt" |
    sed -E 's/\.([0-9]+)( |$)/:\1\2/g'
}

# as_expected 'CLIENT SERVER' NAME...: whether request and answer have these addresses.
as_expected() {
  local client=${1% *} server=${1#* } hop
  shift
  for hop in "$@"; do
    [[ $(endpoints "$hop" S) == "$client:"*" > $server:80" && $(endpoints "$hop" S.) == "$server:80 > $client:"* ]] || return 1
  done
}

step_services() {
  section "Services of vm03, each with a real exchange from vm01 at $VIP"
  # The database may still be making its tables; what is asked below is asked through the virtual address all the same.
  within 30 quietly on vm03 bash -c 'exec 3<>/dev/tcp/192.168.200.3/3306' || true
  local row try what
  printf '    %-9s %-52s %s\n' service exchange result
  for row in 'ping|try_ping|echo answered' 'ssh|try_ssh|login by key, where hostname says vm03' "http|try_http|page says \"$PAGE\"" \
    'https|try_https|the same, certificate verified' "dns|try_dns_udp|$NAME is 192.168.200.3, by UDP" \
    "dns|try_dns_tcp|$NAME is 192.168.200.3, by TCP" "mysql|try_mysql|login with password; the third customer is Radia"; do
    IFS='|' read -r service try what <<<"$row"
    if within 5 "$try"; then
      printf '    %-9s %-52s %sworks%s\n' "$service" "$what" "$green" "$plain"
    else
      printf '    %-9s %-52s %sDOES NOT WORK%s\n' "$service" "$what" "$red" "$plain"
      FAILED=1
    fi
  done
}

# Packets dropped on their way out of the closed network.
dropped() { on vm02 iptables-save -c -t mangle | sed -n 's/^\[\([0-9]*\):.*-A SNET-FO-.* -j DROP$/\1/p' | awk '{ n += $1 } END { print n + 0 }'; }

step_fence() {
  section "The fence: vm03 calls vm01 by itself"
  local before after
  before=$(dropped)
  watch fence vm01 eth0 'dst host 192.168.100.1 and (icmp[icmptype] = icmp-echo or tcp[tcpflags] & (tcp-syn|tcp-ack) = tcp-syn)'
  check "ping from vm03 to vm01 is not answered" not quietly on vm03 ping -n -c 1 -W 1 192.168.100.1
  check "a TCP connection is not made" not quietly on vm03 timeout 1 bash -c 'exec 3<>/dev/tcp/192.168.100.1/22'
  unwatch fence
  after=$(dropped)
  check "no packet of it arrives at vm01" not grep -q . "$dir/fence.pcap.txt"
  seen fence | quote
  check "the gateway has counted $((after - before)) dropped packets" test "$after" -gt "$before"
  on vm02 iptables-save -c -t mangle | grep -e '-A SNET-FO-.* -j DROP' | quote
}

step_cleanup() {
  section "Clean-up"
  kill -TERM "$(cat "$dir/agent.pid")"
  check "the agent ends on SIGTERM" wait "$(cat "$dir/agent.pid")"
  check "traffic goes on without it: stopping an agent is not removing its mappings" try_ping
  check "stagenet cleanup succeeds" into "$dir/cleanup" on vm02 "$STAGENET" cleanup
  quote <"$dir/cleanup"
  check "$VIP is silent again" not try_ping
  gateway_state >"$dir/now"
  check "tables, routes, neighbours, addresses and settings of the gateway are byte-equal to before" cmp -s "$dir/before" "$dir/now"
  diff "$dir/before" "$dir/now" | quote || true
  check "no entry of the connection table names the virtual address" not connection_table_names_it
}

connection_table_names_it() { on vm02 conntrack -L 2>/dev/null | grep -q "=$VIP "; }
