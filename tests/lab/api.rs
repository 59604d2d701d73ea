//! A real control plane for labs: etcd and kube-apiserver as built by `tests/testbed/build.sh`, in a namespace of their own, with a
//! management segment that leads there. Processes reach it with service account tokens, with the rights that `deploy/` gives them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::net::{command, plug};
use super::{Ns, Ran, bridge, seconds, wait_until};

const SERVER: &str = "https://10.99.0.1:6443";
const ADMIN: &str = "/run/lab/admin.kubeconfig";
/// Set to skip labs that need the control plane. Every skip is printed.
const SKIP: &str = "STAGENET_SKIP_API_LABS";

/// The control plane.
#[derive(Debug)]
pub struct Api {
    /// The host that it runs on, 10.99.0.1 on the management segment.
    pub host: Ns,
    segment: Ns,
    bin: PathBuf,
    /// Flags of the API server besides those that every lab wants; the last of two counts.
    flags: Vec<String>,
    etcd: Option<Child>,
    server: Option<Child>,
    manager: Option<Child>,
}

/// Whether labs that need the control plane are to be skipped.
pub fn without_api() -> bool {
    std::env::var_os(SKIP).is_some()
}

/// Runs `body` as an isolated lab, with the folder of the control plane's programs, which are built first if need be.
pub fn isolated_with_api(name: &str, body: impl FnOnce(&Path)) {
    if without_api() {
        eprintln!("SKIPPED {name}: {SKIP} is set; nothing of it was tested");
        return;
    }
    // Outside the world there is a network to fetch modules with; inside it this only finds what is there.
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed/build.sh");
    let built = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(built.status.success(), "tests/testbed/build.sh: {}; it needs Go", built.status);
    let bin = PathBuf::from(String::from_utf8(built.stdout).unwrap().trim());
    super::isolated(name, || body(&bin));
}

impl Api {
    /// Starts etcd and the API server; installs the kinds and what of `deploy/` an API server alone can hold.
    pub fn start(bin: &Path) -> Self {
        Self::start_with(bin, &[])
    }

    /// The same with more flags for the API server.
    pub fn start_with(bin: &Path, flags: &[&str]) -> Self {
        let host = Ns::new("api");
        let segment = bridge("management", &[(&host, "eth0", "10.99.0.1/24")]);
        fs::create_dir("/run/lab/api").unwrap();
        host.sh("openssl genrsa -out /run/lab/api/sa.key 2048 2>/dev/null && openssl rsa -in /run/lab/api/sa.key -pubout -out /run/lab/api/sa.pub 2>/dev/null");
        fs::write("/run/lab/api/tokens.csv", "admin-token,admin,admin,\"system:masters\"\n").unwrap();
        let mut api = Self {
            host,
            segment,
            bin: bin.to_owned(),
            flags: flags.iter().map(ToString::to_string).collect(),
            etcd: None,
            server: None,
            manager: None,
        };
        let etcd = api.run(
            "etcd",
            &[
                "--data-dir=/run/lab/api/etcd",
                "--unsafe-no-fsync",
                "--listen-client-urls=http://127.0.0.1:2379",
                "--advertise-client-urls=http://127.0.0.1:2379",
                "--listen-peer-urls=http://127.0.0.1:2380",
                "--log-level=error",
            ],
        );
        api.etcd = Some(etcd);
        api.start_server();
        fs::write(ADMIN, kubeconfig("admin-token")).unwrap();
        api.wait_ready();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        api.kubectl(&format!("apply -f {}", root.join("crds").display()));
        api.wait_established("stagingnetworks.stagenet.dev natmappings.stagenet.dev gatewaynodes.stagenet.dev");
        // The API server makes it some time after it is ready.
        wait_until(seconds(60), "namespace default", || {
            api.try_kubectl("get namespace default").code == 0
        });
        for file in [
            "namespace",
            "serviceaccounts",
            "rbac-controller",
            "rbac-agent",
            "rbac-users",
            "agent-policy",
        ] {
            api.kubectl(&format!(
                "apply -f {}",
                root.join("deploy/base").join(file).with_extension("yaml").display()
            ));
        }
        api
    }

    /// Starts the API server, at first or again.
    pub fn start_server(&mut self) {
        let mut args = vec![
            "--etcd-servers=http://127.0.0.1:2379",
            "--secure-port=6443",
            "--bind-address=10.99.0.1",
            "--advertise-address=10.99.0.1",
            "--cert-dir=/run/lab/api/certs",
            "--service-account-key-file=/run/lab/api/sa.pub",
            "--service-account-signing-key-file=/run/lab/api/sa.key",
            "--service-account-issuer=https://kubernetes.default.svc",
            "--token-auth-file=/run/lab/api/tokens.csv",
            "--authorization-mode=Node,RBAC",
            "--service-cluster-ip-range=10.96.0.0/16",
            "--endpoint-reconciler-type=none",
        ];
        args.extend(self.flags.iter().map(String::as_str));
        let child = self.run("kube-apiserver", &args);
        self.server = Some(child);
    }

    /// Starts what collects garbage, ends namespaces and adds rules to the cluster's own roles.
    pub fn start_manager(&mut self) {
        let child = self.run(
            "kube-controller-manager",
            &[
                "--kubeconfig=/run/lab/admin.kubeconfig",
                "--controllers=garbage-collector-controller,clusterrole-aggregation-controller,namespace-controller",
                "--leader-elect=false",
                "--bind-address=127.0.0.1",
                "--cert-dir=/run/lab/api/manager",
            ],
        );
        self.manager = Some(child);
    }

    /// Kills the API server.
    pub fn stop_server(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    pub fn wait_ready(&self) {
        wait_until(
            seconds(60),
            "the API server to be ready (see /run/lab/api/kube-apiserver.log)",
            || self.try_kubectl("get --raw /readyz").code == 0,
        );
    }

    /// Waits until the API server offers the kinds of these definitions. `kubectl wait` gives up where a definition has no conditions at all yet.
    pub fn wait_established(&self, definitions: &str) {
        wait_until(seconds(60), &format!("{definitions} to be established"), || {
            self.try_kubectl(&format!("wait crd --for=condition=Established --timeout=20s {definitions}"))
                .code
                == 0
        });
    }

    fn run(&self, program: &str, args: &[&str]) -> Child {
        let log = File::options()
            .create(true)
            .append(true)
            .open(format!("/run/lab/api/{program}.log"))
            .unwrap();
        let path = self.bin.join(program);
        self.host
            .enter(|| command(path).args(args).stdout(log.try_clone().unwrap()).stderr(log).spawn())
            .unwrap_or_else(|e| panic!("starting {program}: {e}"))
    }

    /// Asks the API server with a token of a kubeconfig (None: the administrator's) and more headers. Returns the code and the answer.
    pub fn call(&self, kubeconfig: Option<&str>, headers: &[&str], method: &str, path: &str, body: &str) -> (u16, String) {
        let text = fs::read_to_string(kubeconfig.unwrap_or(ADMIN)).unwrap();
        let token = text.split("token: ").nth(1).and_then(|rest| rest.split('}').next()).unwrap();
        fs::write("/run/lab/body", body).unwrap();
        let headers: String = headers.iter().map(|header| format!(" -H '{header}'")).collect();
        let said = self.host.sh(&format!(
            "curl -sS --cacert /run/lab/api/certs/apiserver.crt -X {method} -H 'Authorization: Bearer {token}'{headers} --data-binary @/run/lab/body \
             -w '\\n%{{http_code}}' '{SERVER}{path}'"
        ));
        let (answer, code) = said.trim_end().rsplit_once('\n').unwrap();
        (code.parse().unwrap(), answer.to_owned())
    }

    /// Runs kubectl as administrator; it must succeed. Returns what it printed.
    pub fn kubectl(&self, args: &str) -> String {
        let ran = self.try_kubectl(args);
        assert_eq!(ran.code, 0, "kubectl {args}: {}", ran.said());
        ran.stdout
    }

    /// Runs kubectl as administrator and reports whatever came of it.
    pub fn try_kubectl(&self, args: &str) -> Ran {
        self.kubectl_as(ADMIN, args)
    }

    /// Runs kubectl with another kubeconfig.
    pub fn kubectl_as(&self, kubeconfig: &str, args: &str) -> Ran {
        self.host.try_sh(&self.kubectl_line(kubeconfig, args))
    }

    /// The line of shell that runs kubectl on [`Api::host`].
    fn kubectl_line(&self, kubeconfig: &str, args: &str) -> String {
        let kubectl = self.bin.join("kubectl");
        format!("HOME=/run/lab {} --kubeconfig={kubeconfig} {args}", kubectl.display())
    }

    /// The same for the administrator, for what goes on for a while.
    pub fn admin_line(&self, args: &str) -> String {
        self.kubectl_line(ADMIN, args)
    }

    /// Makes objects out of YAML.
    pub fn apply(&self, yaml: &str) {
        fs::write("/run/lab/apply.yaml", yaml).unwrap();
        self.kubectl("apply -f /run/lab/apply.yaml");
    }

    /// Makes `ns` a node of the cluster, named as it is, on the management segment, and returns a kubeconfig for its agent:
    /// with a token of the agent's service account that is bound to that node, as a pod's is.
    pub fn join(&self, ns: &Ns, address: &str, label: &str) -> String {
        let name = ns.name();
        plug(&self.segment, &format!("m-{name}"), ns, "mgmt0");
        ns.sh(&format!("ip addr add {address}/24 dev mgmt0"));
        self.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels: {{{label}}}\n"
        ));
        self.agent_token(name)
    }

    /// A kubeconfig with a fresh token for the agent of a node that has joined.
    pub fn agent_token(&self, node: &str) -> String {
        self.token(&format!("stagenet-agent --bound-object-kind=Node --bound-object-name={node}"), node)
    }

    /// A kubeconfig for the controller.
    pub fn controller(&self) -> String {
        self.token("stagenet-controller", "controller")
    }

    /// A kubeconfig with a token of the agents' account that is bound to no node.
    pub fn unbound_agent(&self) -> String {
        self.token("stagenet-agent", "unbound")
    }

    fn token(&self, account: &str, name: &str) -> String {
        let token = self.kubectl(&format!("-n stagenet-system create token --duration=1h {account}"));
        let file = format!("/run/lab/{name}.kubeconfig");
        fs::write(&file, kubeconfig(token.trim())).unwrap();
        file
    }

    /// How often this run of the API server was asked to write a status of our kinds.
    pub fn status_writes(&self) -> u64 {
        let ours = |l: &&str| {
            l.starts_with("apiserver_request_total{") && l.contains("group=\"stagenet.dev\"") && l.contains("subresource=\"status\"")
        };
        let written = |l: &&str| ["PUT", "PATCH", "APPLY"].iter().any(|verb| l.contains(&format!("verb=\"{verb}\"")));
        let page = self.kubectl("get --raw /metrics");
        let counts = page.lines().filter(ours).filter(written);
        counts.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    /// A field of an object, by JSON path.
    pub fn field(&self, object: &str, path: &str) -> String {
        self.try_kubectl(&format!("get {object} -o jsonpath='{{{path}}}'")).stdout
    }

    /// Waits until a mapping is Ready for the present generation of its spec.
    pub fn wait_ready_mapping(&self, name: &str) {
        wait_until(seconds(40), &format!("natmapping/{name} to be Ready"), || {
            let generation = self.field(&format!("natmapping/{name}"), ".metadata.generation");
            let ready = self.field(
                &format!("natmapping/{name}"),
                ".status.conditions[?(@.type==\"Ready\")].status} {.status.conditions[?(@.type==\"Ready\")].observedGeneration",
            );
            ready == format!("True {generation}")
        });
    }
}

fn kubeconfig(token: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster: {{server: '{SERVER}', \
         certificate-authority: /run/lab/api/certs/apiserver.crt}}\nusers:\n- name: lab\n  user: {{token: {token}}}\ncontexts:\n- name: lab\n  context: {{cluster: lab, user: lab}}\n"
    )
}
