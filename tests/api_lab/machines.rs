//! Mappings that name virtual machines, with `KubeVirt`'s own definitions on a real API server. What `KubeVirt` would write of a machine is written by hand.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Cluster;
use crate::lab::{self, Backend, Steady, VIP, VIP_80, isolated_with_api, seconds, wait_for, wait_until};

/// The definitions, made first if need be. None: labs of this kind are skipped.
pub(crate) fn definitions() -> Option<PathBuf> {
    if std::env::var_os("STAGENET_SKIP_API_LABS").is_some() {
        return None;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/testbed/kubevirt.sh");
    let made = Command::new(script).stderr(Stdio::inherit()).output().unwrap();
    assert!(made.status.success(), "tests/testbed/kubevirt.sh: {}; it needs Go", made.status);
    Some(PathBuf::from(String::from_utf8(made.stdout).unwrap().trim()))
}

/// What `KubeVirt` would do.
struct KubeVirt<'a> {
    c: &'a Cluster,
    definitions: PathBuf,
}

impl KubeVirt<'_> {
    fn install(&self) {
        let api = &self.c.api;
        api.kubectl(&format!("apply --server-side -f {}", self.definitions.display()));
        api.wait_established("virtualmachines.kubevirt.io virtualmachineinstances.kubevirt.io");
    }

    /// A machine that is off. Its network `closed` is the attachment `closed-b`.
    fn create(&self) {
        // The server offers a new kind a moment after it says so.
        let machine = "apiVersion: kubevirt.io/v1\nkind: VirtualMachine\nmetadata: {name: vm03, namespace: default}\nspec:\n  runStrategy: Manual\n  \
                       template:\n    spec:\n      domain: {devices: {interfaces: [{name: closed, bridge: {}}]}}\n      \
                       networks: [{name: closed, multus: {networkName: closed-b}}]\n";
        std::fs::write("/run/lab/vm.yaml", machine).unwrap();
        wait_until(seconds(30), "the API server to take a machine", || {
            self.c.api.try_kubectl("apply -f /run/lab/vm.yaml").code == 0
        });
    }

    /// Switches it on, or tells of it anew: attached to `attachment`, with `address` at `closed`, and one that a container has inside.
    fn report(&self, attachment: &str, address: &str, memory: u32) {
        let uid = self.c.api.field("virtualmachines.kubevirt.io/vm03", ".metadata.uid");
        let address = if address.is_empty() {
            String::new()
        } else {
            format!("ipAddress: {address}, ipAddresses: [{address}, 'fe80::5054:ff:fe00:3'], ")
        };
        self.c.api.apply(&format!(
            "apiVersion: kubevirt.io/v1\nkind: VirtualMachineInstance\nmetadata:\n  name: vm03\n  namespace: default\n  ownerReferences:\n  \
             - {{apiVersion: kubevirt.io/v1, kind: VirtualMachine, name: vm03, uid: {uid}, controller: true}}\nspec:\n  domain: {{devices: {{interfaces: [{{name: closed, bridge: {{}}}}]}}}}\n  \
             networks: [{{name: closed, multus: {{networkName: {attachment}}}}}]\nstatus:\n  phase: Running\n  memory: {{guestCurrent: {memory}Mi}}\n  interfaces:\n  \
             - {{name: closed, {address}mac: '02:00:00:00:00:03', infoSource: 'domain, guest-agent'}}\n  \
             - {{interfaceName: docker0, ipAddress: 192.168.200.77, infoSource: guest-agent}}\n"
        ));
    }

    fn switch_off(&self) {
        self.c.api.kubectl("delete virtualmachineinstances.kubevirt.io vm03");
    }

    fn remove(&self) {
        let api = &self.c.api;
        api.kubectl("delete crd virtualmachines.kubevirt.io virtualmachineinstances.kubevirt.io --timeout=60s");
    }

    fn condition(&self, kind: &str) -> String {
        let field = |name| format!(".status.conditions[?(@.type==\"{kind}\")].{name}");
        let parts = format!("{}}} {{{}}}: {{{}", field("status"), field("reason"), field("message"));
        self.c.api.field("natmapping/machine", &parts)
    }

    fn target(&self, field: &str) -> String {
        self.c.api.field("natmapping/machine", &format!(".status.target.{field}"))
    }

    /// Waits until the reference leads nowhere for a reason, with a message that has `says`; then no packet does either.
    fn wait_nowhere(&self, reason: &str, says: &str) {
        wait_until(seconds(40), &format!("ResolvedRefs to be {reason}"), || {
            self.condition("ResolvedRefs").starts_with(&format!("False {reason}: "))
        });
        let said = self.condition("ResolvedRefs");
        assert!(said.contains(says), "{said}");
        wait_until(seconds(20), "Ready and Programmed to say the same", || {
            ["Ready", "Programmed"].iter().all(|kind| self.condition(kind) == said)
        });
        wait_until(seconds(20), "the rules to go", || {
            !self.c.seed.rules().contains("192.168.100.3/32") && self.gone()
        });
        assert!(self.condition("Accepted").starts_with("True"), "the virtual address is kept");
    }

    fn gone(&self) -> bool {
        self.c.seed.vm01.tcp_fails(VIP_80)
    }

    /// Waits until status says `address` in `state` and Ready, from when on traffic flows.
    fn wait_at(&self, address: &str, state: &str, server: &str) {
        let place = "address} {.status.target.state} {.status.conditions[?(@.type==\"Ready\")].status";
        wait_until(seconds(40), &format!("the mapping to lead to {address}, {state}"), || {
            self.target(place) == format!("{address} {state} True")
        });
        assert_eq!(self.c.seed.vm01.tcp(VIP_80).expect("Ready means that traffic flows").server, server);
    }
}

/// A machine's life: named before `KubeVirt` is there, started, moved, switched off, lying, on another network, and away with `KubeVirt`. Beside it, one with an explicit address.
#[test]
#[allow(clippy::too_many_lines)] // one life
fn a_machine_is_found_by_its_name() {
    let Some(definitions) = definitions() else {
        return eprintln!("SKIPPED a_machine_is_found_by_its_name: STAGENET_SKIP_API_LABS is set");
    };
    isolated_with_api("machines::a_machine_is_found_by_its_name", |bin| {
        let mut c = Cluster::start(bin, Backend::Nft);
        let root = crate::ROOT;
        c.api.kubectl(&format!("apply -f {root}/examples/seed/network.yaml"));
        c.api
            .apply(&lab::mapping("explicit", "segment-b", "192.168.100.4", "192.168.200.4", ""));
        let by_name =
            lab::mapping("machine", "segment-b", VIP, "X", "").replace("address: X", "virtualMachineRef: {name: vm03, interface: closed}");
        c.api.apply(&by_name);
        c.api.wait_ready_mapping("explicit");
        let steady = Steady::connect(&c.seed.vm01, "192.168.100.4:80");
        let k = KubeVirt { c: &c, definitions };

        k.wait_nowhere("KubeVirtMissing", "The cluster has no kind virtualmachine");
        k.install();
        k.wait_nowhere("VirtualMachineNotFound", "no VirtualMachine vm03");
        k.create();
        k.wait_nowhere("WaitingForAddress", "vm03 is off, and no address of it is known");
        k.report("closed-b", "192.168.200.3", 100);
        k.wait_at("192.168.200.3", "Reported", "vm03");
        assert_eq!(
            ["source", "attachment", "virtualMachine", "interface"].map(|field| k.target(field)),
            ["domain, guest-agent", "default/closed-b", "vm03", "closed"]
        );
        let table = c.api.kubectl("get natmap machine");
        assert!(table.contains(" vm03 ") && !table.contains('{'), "{table}");
        steady.goes_on("while a machine came up");

        // What is of no concern: machines report all the time.
        let stays = || {
            let before = c.api.status_writes();
            std::thread::sleep(seconds(2));
            (before, c.api.status_writes())
        };
        let (_, quiet) = wait_for(seconds(40), "what followed from the machine's start to be written", || {
            Some(stays()).filter(|(before, after)| before == after)
        });
        for memory in 101..106 {
            k.report("closed-b", "192.168.200.3", memory);
        }
        assert_eq!(stays(), (quiet, quiet), "nothing was written");

        let mut open = c.seed.vm01.tcp(VIP_80).unwrap();
        k.report("closed-b", "192.168.200.4", 106);
        k.wait_at("192.168.200.4", "Reported", "vm04");
        assert!(open.is_cut(), "the connection to where it was has ended");
        let mut open = c.seed.vm01.tcp(VIP_80).unwrap();
        k.switch_off();
        k.wait_at("192.168.200.4", "Held", "vm04");
        assert!(
            k.condition("ResolvedRefs")
                .contains("vm03 is off; its last address 192.168.200.4 is held")
        );
        assert!(open.works(), "nothing was taken away");
        k.report("closed-b", "", 107);
        wait_until(seconds(20), "a machine that starts to be told of", || {
            k.condition("ResolvedRefs")
                .contains("reports no IPv4 address at interface closed; its last")
        });
        assert!(open.works(), "nor while it starts");

        k.report("closed-b", "10.9.9.9", 108);
        k.wait_nowhere(
            "TargetOutside",
            "reports 10.9.9.9 at interface closed (domain, guest-agent), must be a machine's address in the inside prefixes of network segment-b, 192.168.200.0/24",
        );
        assert!(open.is_cut(), "the old flow went with the rules");
        assert!(k.condition("Stalled").starts_with("True"));
        k.report("closed-b", "192.168.200.3", 109);
        k.wait_at("192.168.200.3", "Reported", "vm03");

        k.report("production", "192.168.200.3", 110);
        k.wait_nowhere("TargetOnOtherNetwork", "is attached to default/production; it was default/closed-b");
        assert!(k.condition("TargetOnOtherNetwork").starts_with("True TargetOnOtherNetwork"));
        wait_until(seconds(20), "a Warning about it", || {
            let told = "get events --field-selector type=Warning,reason=TargetOnOtherNetwork,involvedObject.name=machine -o name";
            c.api.kubectl(told).lines().count() == 1
        });
        // The administrator says that it is the same segment, and then that only the other one is.
        let attachments = |list: &str| {
            c.api.kubectl(&format!(
                "patch snet/segment-b --type=merge -p '{{\"spec\":{{\"inside\":{{\"networkAttachments\":{list}}}}}}}'"
            ));
        };
        attachments("[\"default/closed-b\",\"default/production\"]");
        k.wait_at("192.168.200.3", "Reported", "vm03");
        assert_eq!(k.condition("TargetOnOtherNetwork"), " : ", "present only while true");
        attachments("[\"default/closed-b\"]");
        k.wait_nowhere(
            "TargetOnOtherNetwork",
            "must be one of inside.networkAttachments of network segment-b, default/closed-b",
        );
        k.report("closed-b", "192.168.200.3", 111);
        k.wait_at("192.168.200.3", "Reported", "vm03");
        steady.goes_on("whatever the machine did");

        k.remove();
        k.wait_nowhere("KubeVirtMissing", "The cluster has no kind virtualmachine");
        k.install();
        k.create();
        k.report("closed-b", "192.168.200.3", 112);
        k.wait_at("192.168.200.3", "Reported", "vm03");
        steady.goes_on("with KubeVirt away and back");

        let agents_may = c
            .api
            .kubectl_as(&c.kubeconfigs[1], "auth can-i list virtualmachineinstances.kubevirt.io -A");
        assert_eq!(agents_may.stdout.trim(), "no", "{}", agents_may.said());
        drop(steady);
        c.controller.assert_alive();
        c.gateway.assert_alive();
    });
}
