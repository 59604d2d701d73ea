//! What goes wrong in the scenario, each once.

use std::io::{Read, Write};
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::claims::MAIN;
use crate::cluster::{Cluster, LEASE};
use crate::lab::{seconds, wait_until};
use crate::steps::{Dice, Touch, settle, touch};
use crate::{clocks, hands, nodes, objects, unread};

pub type Trouble = fn(&mut Cluster, &mut Dice);

/// All of them, with what they are called.
pub const ALL: &[(&str, Trouble)] = &[
    ("the active gateway's agent is killed and comes back", agent_killed),
    ("both agents fall silent", agents_silent),
    ("the active gateway's agent is gone for good", gateway_moves),
    ("the agents' tokens are revoked", token_revoked),
    ("the API server restarts", server_restarts),
    ("watches are cut", watches_cut),
    ("etcd is compacted, watches have expired", compacted),
    ("409", conflicts),
    ("429", too_many),
    ("500", errors),
    ("slow answers", slow),
    ("the API server cannot be reached", down),
    ("the active gateway's Node is deleted and created anew", nodes::deleted_and_created),
    ("a Node is replaced within a moment", nodes::replaced),
    ("the nodes' clocks jump", clocks::of_nodes),
    ("the leader's clock jumps", clocks::of_the_leader),
    ("the leader is paused and wakes up", leader_pauses),
    ("a newer version writes a mapping that this one cannot read", unread::mapping),
    ("a newer version writes a network that this one cannot read", unread::network),
    ("the network is deleted under its mappings", objects::network_goes),
    ("lists are empty by mistake", objects::empty_lists),
    ("everything is deleted", objects::all_deleted),
    ("definitions go unheard and come back", objects::definitions_go),
    ("the outside cable is pulled", hands::outside_cable),
    ("the inside cable is pulled", hands::inside_cable),
    ("the other network's inside cable is pulled", hands::other_cable),
    ("somebody changes the kernels", hands::tampered),
    ("somebody goes on changing a kernel", hands::fight),
    ("a machine is switched off", hands::machine_goes),
];

/// Does something to a mapping while somebody cannot hear of it who has to. Nothing is excused for it but what this mapping claimed and claims.
pub fn touch_unseen(cluster: &mut Cluster, dice: &mut Dice) -> String {
    let touch = Touch::chosen(&cluster.model, dice);
    cluster.watchman.excuse.lock().unwrap().unheard.extend(touch.claims());
    touch.done(cluster)
}

pub fn pause(milliseconds: u64) {
    std::thread::sleep(std::time::Duration::from_millis(milliseconds));
}

fn agent_killed(cluster: &mut Cluster, dice: &mut Dice) {
    let n = cluster.active_gateway();
    cluster.gateways[n].kill();
    cluster.log("agent killed");
    pause(800);
    cluster.accuse("an agent was killed: what it left has to work");
    let said = touch_unseen(cluster, dice);
    cluster.gateways[n].start();
    settle(cluster, &format!("agent killed; {said}; started again"));
}

fn agents_silent(cluster: &mut Cluster, _: &mut Dice) {
    cluster.gateways.iter_mut().for_each(crate::cluster::Gateway::kill);
    cluster.model.silent = true;
    settle(cluster, "both agents are killed");
    cluster.gateways.iter_mut().for_each(crate::cluster::Gateway::start);
    cluster.model.silent = false;
    settle(cluster, "both agents are started again");
}

fn gateway_moves(cluster: &mut Cluster, dice: &mut Dice) {
    let before = cluster.active(MAIN.name);
    let n = cluster.active_gateway();
    cluster.gateways[n].kill();
    wait_until(seconds(LEASE + 60), "another gateway to be active", || {
        cluster.supervise();
        cluster.active(MAIN.name) != before
    });
    cluster.model.silent_standby = true;
    settle(cluster, "another gateway is active");
    cluster.model.silent_standby = false;
    // The old one holds what it held and nobody tells it otherwise: what is claimed anew must not be answered for by two.
    cluster.gateways[n].start();
    settle(cluster, "the old gateway is back");
    assert_ne!(cluster.active(MAIN.name), before, "the one that serves goes on to serve");
    let said = touch(cluster, dice);
    settle(cluster, &said);
}

fn token_revoked(cluster: &mut Cluster, dice: &mut Dice) {
    let root = env!("CARGO_MANIFEST_DIR");
    cluster.api.kubectl("-n stagenet-system delete serviceaccount stagenet-agent");
    cluster.api.kubectl(&format!("apply -f {root}/deploy/base/serviceaccounts.yaml"));
    cluster.faults.order(&json!({"cut": true}));
    cluster.log("tokens revoked");
    // The API server remembers for ten seconds that a token was good. Gateways are told neither that they are elected nor that they are not.
    cluster.watchman.excuse.lock().unwrap().deaf_gateways = true;
    cluster.model.silent = true;
    settle(cluster, "the agents' tokens are revoked");
    cluster.accuse("tokens were revoked: what stands has to work");
    let said = touch_unseen(cluster, dice);
    for n in 0..2 {
        cluster.gateways[n].agent.as_mut().unwrap().assert_alive();
        cluster.gateways[n].kill();
        cluster.renew_token(n);
        cluster.gateways[n].start();
    }
    cluster.model.silent = false;
    settle(cluster, &format!("{said}; agents have new tokens"));
}

fn server_restarts(cluster: &mut Cluster, dice: &mut Dice) {
    cluster.api.stop_server();
    cluster.log("API server killed");
    pause(1000);
    cluster.api.start_server();
    cluster.api.wait_ready();
    cluster.accuse("the API server was away: what stands has to work");
    let said = touch_unseen(cluster, dice);
    cluster.wait_watched();
    settle(cluster, &format!("the API server is back; {said}"));
}

fn watches_cut(cluster: &mut Cluster, dice: &mut Dice) {
    let said = touch_unseen(cluster, dice);
    let seen = cluster.faults.order(&json!({"cut": true}));
    assert!(seen["cut"].as_u64() >= Some(8), "watches of two agents and two controllers: {seen}");
    let more = touch_unseen(cluster, dice);
    cluster.faults.none();
    cluster.wait_watched();
    settle(cluster, &format!("{said}; watches cut; {more}"));
}

fn compacted(cluster: &mut Cluster, dice: &mut Dice) {
    let said = touch_unseen(cluster, dice);
    cluster.api.stop_server();
    compact(cluster);
    cluster.api.start_server();
    cluster.api.wait_ready();
    let more = touch_unseen(cluster, dice);
    // Whatever version a client asks to go on from: it is too old.
    cluster.faults.order(&json!({"cut": true, "expire": true}));
    let last = touch_unseen(cluster, dice);
    pause(1000);
    let seen = cluster.faults.order(&json!({}));
    assert!(
        seen["faults"].as_u64() >= Some(8),
        "watches of two agents and two controllers are told that they expired: {seen}"
    );
    cluster.wait_watched();
    settle(cluster, &format!("{said}; etcd compacted; {more}; watches expired; {last}"));
}

/// Forgets all history of etcd.
fn compact(cluster: &Cluster) {
    let ask = |path: &str, body: &Value| -> Value {
        let mut answer = String::new();
        let mut stream = cluster.api.host.enter(|| TcpStream::connect("127.0.0.1:2379")).unwrap();
        let body = body.to_string();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: etcd\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all((head + &body).as_bytes()).unwrap();
        stream.read_to_string(&mut answer).unwrap();
        let (_, json) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(json).unwrap_or_else(|e| panic!("etcd says {answer}: {e}"))
    };
    let status = ask("/v3/maintenance/status", &json!({}));
    let revision = &status["header"]["revision"];
    let done = ask("/v3/kv/compaction", &json!({"revision": revision, "physical": true}));
    assert!(done["header"]["revision"].is_string(), "{done}");
}

/// For three seconds a share of all requests gets these answers, while people work.
fn bad_weather(cluster: &mut Cluster, dice: &mut Dice, order: Value) {
    let mut order = order;
    order["share"] = json!(0.5);
    order["seed"] = json!(dice.below(1 << 30));
    order["cut"] = json!(true);
    cluster.faults.order(&order);
    let mut said = Vec::new();
    for _ in 0..4 {
        said.push(touch_unseen(cluster, dice));
        pause(700);
    }
    let seen = cluster.faults.order(&json!({}));
    assert!(seen["faults"].as_u64() > Some(0), "nothing was asked of the API server: {seen}");
    cluster.wait_watched();
    settle(cluster, &format!("{order}; {}", said.join("; ")));
}

fn conflicts(cluster: &mut Cluster, dice: &mut Dice) {
    bad_weather(cluster, dice, json!({"codes": [409]}));
}

fn too_many(cluster: &mut Cluster, dice: &mut Dice) {
    bad_weather(cluster, dice, json!({"codes": [429]}));
}

fn errors(cluster: &mut Cluster, dice: &mut Dice) {
    bad_weather(cluster, dice, json!({"codes": [500, 429, 409]}));
}

fn slow(cluster: &mut Cluster, dice: &mut Dice) {
    bad_weather(cluster, dice, json!({"slowMilliseconds": 1500}));
}

fn down(cluster: &mut Cluster, dice: &mut Dice) {
    cluster.faults.order(&json!({"down": true}));
    pause(2000);
    let said = touch_unseen(cluster, dice);
    pause(1000);
    cluster.accuse("the API server could not be reached: what stands has to work");
    cluster.faults.none();
    cluster.wait_watched();
    settle(cluster, &format!("nobody reached the API server; {said}"));
}

/// The replica that leads.
pub fn leader(cluster: &Cluster) -> String {
    let lease = "/apis/coordination.k8s.io/v1/namespaces/stagenet-system/leases/stagenet-controller";
    let (_, lease) = cluster.desk.ask("GET", lease, None);
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

fn leader_pauses(cluster: &mut Cluster, dice: &mut Dice) {
    let led = leader(cluster);
    let n = usize::from(led == "replica-1");
    cluster.controllers[n].signal("STOP");
    let said = touch_unseen(cluster, dice);
    wait_until(seconds(60), "the other replica to lead", || leader(cluster) != led);
    settle(cluster, &format!("{led} is paused; {said}"));
    let said = touch(cluster, dice);
    cluster.controllers[n].signal("CONT");
    wait_until(seconds(30), "the old leader to see that it leads no more", || {
        cluster.controllers[n].has_ended()
    });
    let words = cluster.controllers[n].log();
    assert!(words.contains("leader lease"), "the old leader says why it ends: {words}");
    settle(cluster, &format!("{led} woke up; {said}"));
    assert_ne!(leader(cluster), led);
}
