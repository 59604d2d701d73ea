# shellcheck shell=bash
# Watching packets with tcpdump.

# watch NAME HOST INTERFACE FILTER: records packets as text in $dir/NAME.pcap.txt; returns once it sees them.
watch() {
  ip netns exec "$2" tcpdump -i "$3" -n -l -t --immediate-mode "$4" >"$dir/$1.pcap.txt" 2>"$dir/$1.pcap.err" &
  echo $! >"$dir/$1.pcap.pid"
  within 5 grep -qs 'listening on' "$dir/$1.pcap.err"
}

# Ends recordings, after what is under way has arrived.
unwatch() {
  local name
  sleep 0.1
  for name in "$@"; do
    kill -TERM "$(cat "$dir/$name.pcap.pid")"
    wait "$(cat "$dir/$name.pcap.pid")" || true
  done
}

seen() { sed "/^$/d" "$dir/$1.pcap.txt"; }
