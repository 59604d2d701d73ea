//! What people and hosts do in the scenario, at random.

use crate::claims::{Claim, OTHER, OTHERS, POOL, POOL6, PORTS, PREFIX, SHARED, SPECIFIC};
use crate::cluster::Cluster;
use crate::model::Model;

/// Names that mappings of the main network may have. Those of the other one are `x` and `y`: a mapping cannot change its network.
const NAMES: [&str; 9] = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
const OTHER_NAMES: [&str; 2] = ["x", "y"];
/// The restored machines of the main network.
const MACHINES: [&str; 2] = ["192.168.200.3", "192.168.200.4"];
const MACHINES6: [&str; 2] = ["fd00:200::3", "fd00:200::4"];

/// Random numbers from a seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % n as u64).unwrap()
    }

    pub fn one<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    fn pick(&mut self, of: &[&'static str]) -> &'static str {
        of[self.below(of.len())]
    }

    /// A claim of any kind, now and then one that is refused.
    fn claim(&mut self) -> Claim {
        let mut claim = match self.below(16) {
            0..=2 => Claim::whole(self.pick(&POOL6), self.pick(&MACHINES6)),
            3..=5 => Claim {
                ports: self.one(&PORTS).to_vec(),
                ..Claim::whole(SHARED, self.pick(&MACHINES))
            },
            6 | 7 => Claim::whole(PREFIX[0], PREFIX[1]),
            8 => Claim::whole(SPECIFIC, self.pick(&MACHINES)),
            _ => Claim::whole(self.pick(&POOL), self.pick(&MACHINES)),
        };
        match self.below(12) {
            0 if claim.place == PREFIX[0] => "192.168.99.32/30".clone_into(&mut claim.place),
            0 if POOL6.contains(&&*claim.place) => "fd00:99::11".clone_into(&mut claim.place),
            0 => "192.168.99.11".clone_into(&mut claim.place),
            1 if claim.place == PREFIX[0] => "10.0.0.32/30".clone_into(&mut claim.target),
            1 if POOL6.contains(&&*claim.place) => "fd00:10::3".clone_into(&mut claim.target),
            1 => "10.0.0.3".clone_into(&mut claim.target),
            _ => {}
        }
        claim
    }

    /// A claim of the other network.
    fn other_claim(&mut self) -> Claim {
        Claim {
            network: OTHER.name.to_owned(),
            ..Claim::whole(self.pick(&OTHERS), "192.168.201.3")
        }
    }

    /// Puts `all` in an order.
    pub fn shuffled<T>(&mut self, mut all: Vec<T>) -> Vec<T> {
        for n in (1..all.len()).rev() {
            all.swap(n, self.below(n + 1));
        }
        all
    }
}

/// Something to do to one mapping.
pub struct Touch {
    name: &'static str,
    before: Option<Claim>,
    /// None: it is deleted.
    after: Option<Claim>,
}

impl Touch {
    pub fn chosen(model: &Model, dice: &mut Dice) -> Self {
        let other = dice.below(6) == 0;
        let name = if other { *dice.one(&OTHER_NAMES) } else { *dice.one(&NAMES) };
        let before = model.claims.get(name).cloned();
        let goes = before.is_some() && dice.below(4) == 0;
        let claim = if other { dice.other_claim() } else { dice.claim() };
        let after = (!goes).then_some(claim);
        Self { name, before, after }
    }

    /// What is claimed before and after.
    pub fn claims(&self) -> impl Iterator<Item = Claim> {
        self.before.iter().chain(&self.after).cloned()
    }

    /// Does it and says what. Does not wait.
    pub fn done(self, cluster: &mut Cluster) -> String {
        let name = self.name;
        let Some(claim) = self.after else {
            cluster.delete(name);
            return format!("{name} is deleted");
        };
        let ports = if claim.ports.is_empty() {
            String::new()
        } else {
            format!(" {:?}", claim.ports)
        };
        let what = if self.before.is_some() { "edited" } else { "created" };
        let said = format!("{name} is {what}, {}{ports} to {}", claim.place, claim.target);
        if self.before.is_some() {
            cluster.edit(name, claim);
        } else {
            cluster.create(name, claim);
        }
        said
    }
}

/// Does something to one mapping and says what. Does not wait.
pub fn touch(cluster: &mut Cluster, dice: &mut Dice) -> String {
    Touch::chosen(&cluster.model, dice).done(cluster)
}

/// One step, settled.
pub fn step(cluster: &mut Cluster, dice: &mut Dice) {
    let many: Vec<String> = (0..*dice.one(&[1, 1, 1, 4])).map(|_| touch(cluster, dice)).collect();
    settle(cluster, &many.join("; "));
}

pub fn settle(cluster: &mut Cluster, what: &str) {
    cluster.log(what);
    cluster.settle(what);
}
