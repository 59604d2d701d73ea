# shellcheck shell=bash
# The servers of the restored VM: real ones, each with something to check in its answer.

PAGE='orders: 3 open, 39 done'
NAME=orders.prod.example
PASSWORD=restored

# On vm03, as a host of that name.
on_vm03() {
  # shellcheck disable=SC2016 # expanded by the inner shell
  ip netns exec vm03 unshare --uts sh -c 'hostname vm03; exec "$@"' - "$@"
}

start_servers() {
  start_database &
  start_sshd
  start_web
  on_vm03 dnsmasq --keep-in-foreground --conf-file=/dev/null --user=root --group=root --pid-file="$dir/dnsmasq.pid" --no-resolv --no-hosts \
    --host-record="$NAME,192.168.200.3" >"$dir/dnsmasq.log" 2>&1 &
}

start_sshd() {
  # Key login asks for an account that is not locked, which root may be here; this world has its own copy.
  sed 's/^root:[^:]*:/root:*:/' /etc/shadow >"$dir/shadow"
  chmod 600 "$dir/shadow"
  mount --bind "$dir/shadow" /etc/shadow
  ssh-keygen -q -t ed25519 -N '' -f "$dir/host-key"
  ssh-keygen -q -t ed25519 -N '' -f "$dir/client-key"
  cp "$dir/client-key.pub" "$dir/authorized-keys"
  echo "192.168.100.3 $(cut -d ' ' -f 1-2 "$dir/host-key.pub")" >"$dir/known-hosts"
  on_vm03 "$(command -v sshd)" -D -e -f /dev/null -o "HostKey $dir/host-key" -o "AuthorizedKeysFile $dir/authorized-keys" -o 'StrictModes no' \
    -o 'UsePAM no' -o 'PermitRootLogin prohibit-password' -o 'PidFile none' -o 'UseDNS no' -o 'PrintLastLog no' >"$dir/sshd.log" 2>&1 &
}

start_web() {
  mkdir "$dir/www"
  echo "$PAGE" >"$dir/www/index.html"
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=vm03 -addext subjectAltName=IP:192.168.100.3 \
    -keyout "$dir/web.key" -out "$dir/web.crt" 2>/dev/null
  cat >"$dir/nginx.conf" <<END
user root;
daemon off;
worker_processes 1;
pid $dir/nginx.pid;
error_log $dir/nginx.log;
events {}
http {
  access_log off;
  client_body_temp_path $dir/nginx-1;
  proxy_temp_path $dir/nginx-2;
  fastcgi_temp_path $dir/nginx-3;
  uwsgi_temp_path $dir/nginx-4;
  scgi_temp_path $dir/nginx-5;
  server {
    listen 80;
    listen 443 ssl;
    ssl_certificate $dir/web.crt;
    ssl_certificate_key $dir/web.key;
    root $dir/www;
  }
}
END
  on_vm03 nginx -e "$dir/nginx.log" -c "$dir/nginx.conf" >"$dir/nginx.out" 2>&1 &
}

# Its system tables take some seconds to make, so it starts while the rest goes on.
start_database() {
  local data=$dir/mysql quiet=(--no-defaults --innodb-buffer-pool-size=8M --innodb-log-file-size=4M --innodb-flush-method=nosync --skip-log-bin)
  mariadb-install-db "${quiet[@]}" --user=root --datadir="$data" --auth-root-authentication-method=normal --skip-test-db \
    --skip-name-resolve >"$dir/mysql-install.log" 2>&1
  cat >"$dir/mysql.sql" <<END
CREATE DATABASE shop;
CREATE TABLE shop.orders (id INT PRIMARY KEY, customer VARCHAR(40));
INSERT INTO shop.orders VALUES (1, 'Ada'), (2, 'Grace'), (3, 'Radia');
CREATE USER 'clerk'@'%' IDENTIFIED BY '$PASSWORD';
GRANT SELECT ON shop.* TO 'clerk'@'%';
END
  on_vm03 mariadbd "${quiet[@]}" --user=root --datadir="$data" --socket="$dir/mysql.sock" --pid-file="$dir/mysql.pid" --skip-name-resolve \
    --bind-address=0.0.0.0 --init-file="$dir/mysql.sql" >"$dir/mysql.log" 2>&1
}

# One real exchange each, from vm01, with the virtual address. Quiet; the exit status tells.
try_ping() { on vm01 ping -n -q -c 1 -W 2 192.168.100.3 >/dev/null; }
try_ssh() {
  [ "$(on vm01 timeout 10 ssh -F /dev/null -i "$dir/client-key" -o BatchMode=yes -o StrictHostKeyChecking=yes \
    -o "UserKnownHostsFile=$dir/known-hosts" -o ConnectTimeout=5 root@192.168.100.3 hostname 2>"$dir/ssh.err")" = vm03 ]
}
try_http() { [ "$(on vm01 curl -s -m 5 http://192.168.100.3/)" = "$PAGE" ]; }
try_https() { [ "$(on vm01 curl -s -m 5 --cacert "$dir/web.crt" https://192.168.100.3/)" = "$PAGE" ]; }
try_dns() { [ "$(on vm01 dig +short +tries=2 +time=2 "$1" @192.168.100.3 "$NAME" A)" = 192.168.200.3 ]; }
try_dns_udp() { try_dns +notcp; }
try_dns_tcp() { try_dns +tcp; }
try_mysql() {
  [ "$(on vm01 mariadb --no-defaults -h 192.168.100.3 -u clerk -p"$PASSWORD" --connect-timeout=5 --skip-ssl -N -B \
    -e 'SELECT customer FROM shop.orders WHERE id = 3' 2>"$dir/mysql.err")" = Radia ]
}
