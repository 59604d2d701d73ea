//! Many clones: the last is served like the first.

use std::time::{Duration, Instant};

use crate::lab::{Clones, Pool, Shape, Snapshot, Steady, wait_until};

/// From the first look at the files to the last clone served, on two busy cores, without optimization.
const BOUND: Duration = Duration::from_secs(90);

/// `count` clones, of which the first two, one in the middle and the last have machines.
fn crowd(shape: Shape, count: usize) {
    let inhabited = [1, 2, count / 2 + 1, count];
    let clones = Clones::with(shape, count, &inhabited);
    let before = Snapshot::of(&clones.gateway);
    for k in clones.all() {
        clones.write(k, false, "Allow");
    }
    let start = Instant::now();
    let mut agent = clones.agent(&[]);
    wait_until(BOUND, "the last clone", || {
        agent.assert_alive();
        inhabited
            .iter()
            .all(|k| clones.client.tcp(&format!("{}:80", clones.vip(*k, "a"))).is_some())
    });
    let served = start.elapsed();
    everybody_talks(&clones, &inhabited);

    // One more and one less concern nobody else.
    let steady: Vec<_> = inhabited[..3]
        .iter()
        .map(|k| Steady::connect(&clones.client, &format!("{}:80", clones.vip(*k, "a"))))
        .collect();
    let start = Instant::now();
    clones.erase(count);
    clones.wait_gone(count);
    let gone = start.elapsed();
    let start = Instant::now();
    clones.write(count, false, "Allow");
    clones.wait_serves(count);
    let back = start.elapsed();
    for steady in &steady {
        steady.goes_on("while a clone went and came");
    }
    everybody_talks(&clones, &inhabited);
    drop(steady);
    println!("measured: {count} clones served after {served:?}, one gone after {gone:?}, back after {back:?}");
    assert_eq!(agent.stop("TERM"), Some(0));
    clones.cleanup();
    before.assert_same(&Snapshot::of(&clones.gateway));
}

/// In and out, from one port, all at once.
fn everybody_talks(clones: &Clones, inhabited: &[usize]) {
    let mut open = Vec::new();
    for k in inhabited {
        let (a, b) = (clones.vip(*k, "a"), clones.vip(*k, "b"));
        let call = clones
            .client
            .tcp_from("192.168.100.1:40000", &format!("{a}:80"))
            .unwrap_or_else(|| panic!("into clone {k}"));
        assert_eq!(call.server, format!("c{k}a"));
        open.push(call);
        let call = clones
            .vm(*k, "a")
            .tcp_from("10.0.0.3:5000", "192.168.100.1:80")
            .unwrap_or_else(|| panic!("out of clone {k}"));
        assert_eq!(call.seen_as.ip().to_string(), a);
        open.push(call);
        let call = clones
            .vm(*k, "a")
            .tcp(&format!("{b}:80"))
            .unwrap_or_else(|| panic!("within clone {k}, by virtual address"));
        assert_eq!(call.server, format!("c{k}b"));
        open.push(call);
        let other = inhabited.iter().find(|other| *other != k).unwrap();
        assert!(
            clones.vm(*k, "a").tcp_is_dropped(&format!("{}:80", clones.vip(*other, "a"))),
            "from clone {k} into clone {other}"
        );
    }
    assert!(open.iter_mut().all(crate::lab::Conversation::works));
}

clones! {
    fn sixteen_clones(shape) in [nft_router, legacy_node] {
        crowd(shape, 16);
    }

    fn fifty_clones(shape) in [nft_node, legacy_router] {
        crowd(Shape { pool: Pool::Own, ..shape }, 50);
    }

    fn two_hundred_clones(shape) in [nft_node, legacy_node] {
        crowd(Shape { connected: false, ..shape }, 200);
    }
}
