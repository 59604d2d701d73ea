//! What must not be possible, tried with the programs' own tokens.

use super::{GATEWAYNODES, LEASES, MAPPINGS, Watched};
use crate::agent;
use crate::lab::{seconds, wait_until};

/// One thing that must not be possible: the method, where, what is sent, and a word of the answer.
type Attempt<'a> = (&'a str, String, String, &'a str);

/// Everything that an agent's token must not do, tried with the token of vm02's agent.
#[allow(clippy::too_many_lines)] // it is a table
pub(super) fn to_an_agent(c: &Watched) {
    let apply = "Content-Type: application/apply-patch+yaml";
    let merge = "Content-Type: application/merge-patch+json";
    let json = "Content-Type: application/json";
    let node = |name: &str| {
        format!("{{\"apiVersion\":\"stagenet.dev/v1alpha1\",\"kind\":\"GatewayNode\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{}}}}")
    };
    let lease = |name: &str| {
        format!(
            "{{\"apiVersion\":\"coordination.k8s.io/v1\",\"kind\":\"Lease\",\"metadata\":{{\"name\":\"{name}\"}},\"spec\":{{\"holderIdentity\":\"x\"}}}}"
        )
    };
    let ssa = "?fieldManager=lie&force=true";
    let own = c.api.call(
        Some(&c.kubeconfigs[1]),
        &[apply],
        "PATCH",
        &format!("{GATEWAYNODES}/vm02/status?fieldManager=stagenet-agent&force=true&dryRun=All"),
        &node("vm02"),
    );
    assert_eq!(own.0, 200, "the status of its own: {}", own.1);

    let role = "is forbidden: User";
    let policy = "the agent of node vm02 may write";
    let unbound = c.api.unbound_agent();
    let attempts: Vec<Attempt<'_>> = vec![
        ("GET", "/api/v1/secrets".into(), String::new(), role),
        ("GET", "/api/v1/namespaces/stagenet-system/secrets/any".into(), String::new(), role),
        (
            "PATCH",
            "/api/v1/nodes/vm02".into(),
            "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}".into(),
            role,
        ),
        ("PATCH", "/api/v1/nodes/vm02/status".into(), "{\"status\":{}}".into(), role),
        ("GET", "/api/v1/pods".into(), String::new(), role),
        ("POST", "/api/v1/namespaces/stagenet-system/pods".into(), "{}".into(), role),
        (
            "POST",
            "/api/v1/namespaces/stagenet-system/serviceaccounts/stagenet-controller/token".into(),
            "{}".into(),
            role,
        ),
        ("GET", "/apis/kubevirt.io/v1/virtualmachines".into(), String::new(), role),
        (
            "GET",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions".into(),
            String::new(),
            role,
        ),
        (
            "DELETE",
            "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/natmappings.stagenet.dev".into(),
            String::new(),
            role,
        ),
        (
            "POST",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".into(),
            "{}".into(),
            role,
        ),
        ("GET", LEASES.into(), String::new(), role),
        (
            "DELETE",
            "/apis/events.k8s.io/v1/namespaces/default/events".into(),
            String::new(),
            role,
        ),
        ("POST", "/apis/stagenet.dev/v1alpha1/stagingnetworks".into(), "{}".into(), role),
        ("DELETE", "/api/v1/nodes/vm01".into(), String::new(), role),
        (
            "PATCH",
            "/api/v1/namespaces/default".into(),
            "{\"metadata\":{\"labels\":{\"team\":\"lie\"}}}".into(),
            role,
        ),
        (
            "PATCH",
            format!("{MAPPINGS}/vm03"),
            "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}".into(),
            role,
        ),
        ("PATCH", format!("{MAPPINGS}/vm03/status"), "{\"status\":{}}".into(), role),
        ("DELETE", format!("{MAPPINGS}/vm03"), String::new(), role),
        ("POST", MAPPINGS.into(), "{}".into(), role),
        (
            "PATCH",
            "/apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b".into(),
            "{\"spec\":{}}".into(),
            role,
        ),
        (
            "PATCH",
            "/apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b/status".into(),
            "{\"status\":{}}".into(),
            role,
        ),
        (
            "DELETE",
            "/apis/stagenet.dev/v1alpha1/stagingnetworks/segment-b".into(),
            String::new(),
            role,
        ),
        ("POST", GATEWAYNODES.into(), node("lie"), role),
        (
            "PATCH",
            format!("{GATEWAYNODES}/vm02"),
            "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}".into(),
            role,
        ),
        ("DELETE", format!("{GATEWAYNODES}/vm02"), String::new(), role),
        ("PATCH", format!("{GATEWAYNODES}/vm01/status{ssa}"), node("vm01"), policy),
        ("DELETE", format!("{LEASES}/stagenet-agent-vm01"), String::new(), role),
        ("POST", LEASES.into(), lease("stagenet-agent-vm01"), policy),
        (
            "PATCH",
            format!("{LEASES}/stagenet-agent-vm01{ssa}"),
            lease("stagenet-agent-vm01"),
            policy,
        ),
        (
            "PATCH",
            format!("{LEASES}/stagenet-controller{ssa}"),
            lease("stagenet-controller"),
            policy,
        ),
    ];
    // The other node needs an object for the attempt to be about it.
    let _other = agent(&c.seed.vm01, &c.kubeconfigs[2]);
    wait_until(seconds(60), "a GatewayNode of vm01", || {
        c.api.try_kubectl("get gwnode/vm01").code == 0
    });
    for (method, path, body, says) in attempts {
        let kind = match method {
            "PATCH" if path.contains("fieldManager") => apply,
            "PATCH" => merge,
            _ => json,
        };
        let (code, answer) = c.api.call(Some(&c.kubeconfigs[1]), &[kind], method, &path, &body);
        assert!(code == 403 && answer.contains(says), "{method} {path}: {code} {answer}");
    }
    let (code, answer) = c.api.call(
        Some(&unbound),
        &[apply],
        "PATCH",
        &format!("{GATEWAYNODES}/vm02/status{ssa}"),
        &node("vm02"),
    );
    assert!(code == 403 && answer.contains("must be bound to a node"), "{code} {answer}");
}

/// Everything that the controller's token must not do: it writes statuses of two kinds, and makes objects of the third.
pub(super) fn to_the_controller(c: &Watched) {
    const NETWORKS: &str = "/apis/stagenet.dev/v1alpha1/stagingnetworks";
    const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    const ROLES: &str = "/apis/rbac.authorization.k8s.io/v1";
    const EVENTS: &str = "/apis/events.k8s.io/v1/namespaces/default/events";
    const SYSTEM: &str = "/api/v1/namespaces/stagenet-system";
    let spec = "{\"spec\":{}}";
    let label = "{\"metadata\":{\"labels\":{\"a\":\"b\"}}}";
    let attempts: Vec<(&str, String, &str)> = vec![
        ("GET", "/api/v1/secrets".into(), ""),
        ("GET", format!("{SYSTEM}/secrets"), ""),
        ("GET", format!("{SYSTEM}/secrets/any"), ""),
        ("GET", format!("{SYSTEM}/configmaps"), ""),
        ("GET", "/api/v1/pods".into(), ""),
        ("POST", format!("{SYSTEM}/pods"), "{}"),
        ("POST", format!("{SYSTEM}/serviceaccounts/stagenet-agent/token"), "{}"),
        ("PATCH", "/api/v1/nodes/vm02".into(), label),
        ("PUT", "/api/v1/nodes/vm02".into(), "{}"),
        ("PATCH", "/api/v1/nodes/vm02/status".into(), "{\"status\":{}}"),
        ("DELETE", "/api/v1/nodes/vm02".into(), ""),
        ("POST", "/api/v1/nodes".into(), "{}"),
        ("PATCH", "/api/v1/namespaces/default".into(), label),
        ("DELETE", "/api/v1/namespaces/default".into(), ""),
        ("PATCH", format!("{MAPPINGS}/vm03"), label),
        ("PUT", format!("{MAPPINGS}/vm03"), "{}"),
        ("DELETE", format!("{MAPPINGS}/vm03"), ""),
        ("DELETE", MAPPINGS.into(), ""),
        ("POST", MAPPINGS.into(), "{}"),
        ("PATCH", format!("{NETWORKS}/segment-b"), spec),
        ("PUT", format!("{NETWORKS}/segment-b"), "{}"),
        ("DELETE", format!("{NETWORKS}/segment-b"), ""),
        ("POST", NETWORKS.into(), "{}"),
        ("PATCH", format!("{GATEWAYNODES}/vm02/status"), "{\"status\":{}}"),
        ("DELETE", format!("{GATEWAYNODES}/vm02"), ""),
        ("GET", DEFINITIONS.into(), ""),
        ("GET", format!("{DEFINITIONS}/virtualmachines.kubevirt.io"), ""),
        ("PATCH", format!("{DEFINITIONS}/natmappings.stagenet.dev"), label),
        ("DELETE", format!("{DEFINITIONS}/natmappings.stagenet.dev"), ""),
        ("POST", DEFINITIONS.into(), "{}"),
        ("PATCH", format!("{ROLES}/clusterroles/stagenet-controller"), label),
        ("POST", format!("{ROLES}/clusterrolebindings"), "{}"),
        ("POST", format!("{ROLES}/namespaces/stagenet-system/rolebindings"), "{}"),
        ("DELETE", format!("{LEASES}/stagenet-agent-vm02"), ""),
        ("PUT", format!("{LEASES}/stagenet-agent-vm02"), "{}"),
        ("GET", "/apis/coordination.k8s.io/v1/leases".into(), ""),
        ("GET", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases".into(), ""),
        ("POST", "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases".into(), "{}"),
        ("GET", EVENTS.into(), ""),
        ("DELETE", EVENTS.into(), ""),
        ("GET", "/api/v1/namespaces/default/services".into(), ""),
        ("GET", "/api/v1/namespaces/default/services/kubernetes".into(), ""),
        ("GET", "/apis/discovery.k8s.io/v1/endpointslices".into(), ""),
        (
            "PATCH",
            "/apis/kubevirt.io/v1/namespaces/default/virtualmachines/vm03".into(),
            label,
        ),
        (
            "DELETE",
            "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/vm03".into(),
            "",
        ),
        (
            "DELETE",
            "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/stagenet-agent".into(),
            "",
        ),
    ];
    let refused = |headers: &[&str], method: &str, path: &str, body: &str| {
        let (code, answer) = c.api.call(Some(&c.kubeconfigs[0]), headers, method, path, body);
        assert!(code == 403 && answer.contains("forbidden"), "{method} {path}: {code} {answer}");
    };
    for (method, path, body) in attempts {
        let kind = if method == "PATCH" { "merge-patch+json" } else { "json" };
        refused(&[&format!("Content-Type: application/{kind}")], method, &path, body);
    }
    for user in [
        "Impersonate-User: admin",
        "Impersonate-User: system:serviceaccount:stagenet-system:stagenet-agent",
    ] {
        refused(&[user], "GET", MAPPINGS, "");
    }
}
