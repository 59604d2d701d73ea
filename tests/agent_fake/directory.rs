//! Manifests in a directory: broken files, last good versions, and directories that are gone.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use stagenet::agent::source;
use stagenet::agent::source::Snapshot;

use crate::{NETWORK, mapping};

#[test]
fn a_broken_file_keeps_its_last_good_objects_and_harms_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("network.yaml", NETWORK);
    write("a.yaml", &mapping("a", 3, 3));
    write("b.yaml", &mapping("b", 4, 4));
    write("ignored.txt", "rubbish: [");
    let mut directory = source::directory::Directory::new(dir.path());
    assert!(directory.scan().unwrap());
    assert!(!directory.scan().unwrap(), "nothing has changed");
    let names = |d: &mut source::directory::Directory| {
        d.snapshot()
            .mappings
            .iter()
            .map(|m| m.metadata.name.clone().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        (names(&mut directory), directory.snapshot().problems),
        (vec!["a".to_owned(), "b".to_owned()], vec![])
    );

    for broken in ["spec: [unclosed", "", "x: 1"] {
        write(
            "a.yaml",
            &format!(
                "{}{broken}\n",
                mapping("a", 3, 3).replace(
                    "kind: NatMapping",
                    if broken.is_empty() { "kind: Nonsense" } else { "kind: NatMapping" }
                )
            ),
        );
        assert!(directory.scan().unwrap());
        let now = directory.snapshot();
        assert_eq!(names(&mut directory), ["a", "b"], "after {broken:?}: {:?}", now.problems);
        assert!(
            now.problems.iter().all(|p| p.place.ends_with("a.yaml")) && !now.problems.is_empty(),
            "{:?}",
            now.problems
        );
    }
    write("a.yaml", &mapping("a", 3, 8));
    directory.scan().unwrap();
    assert_eq!(directory.snapshot().problems, []);
    assert_eq!(directory.snapshot().mappings[0].spec.target.text(), "192.168.200.8");
    std::fs::remove_file(dir.path().join("a.yaml")).unwrap();
    assert!(directory.scan().unwrap());
    assert_eq!(names(&mut directory), ["b"], "a deleted file takes its objects with it");
    write("c.yaml", &mapping("b", 5, 5));
    directory.scan().unwrap();
    assert_eq!(names(&mut directory), ["b"]);
    assert!(
        directory.snapshot().problems[0].to_string().contains("already"),
        "{:?}",
        directory.snapshot().problems
    );
    std::fs::remove_dir_all(dir.path()).unwrap();
    assert!(directory.scan().is_err());
    assert_eq!(names(&mut directory), ["b"], "a directory that is gone takes nothing");
}

/// A folder of manifests and a state directory, as an agent that is started anew finds them.
struct Started {
    dir: tempfile::TempDir,
    state: tempfile::TempDir,
}

impl Started {
    fn new() -> Self {
        let started = Self {
            dir: tempfile::tempdir().unwrap(),
            state: tempfile::tempdir().unwrap(),
        };
        started.write("network.yaml", NETWORK);
        started
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.dir.path().join(name)).unwrap();
    }

    /// What an agent that starts now puts in force, as `NAME → TARGET`, and what it says is wrong.
    fn read(&self) -> (Vec<String>, Vec<String>) {
        let snapshot = source::directory::read(self.dir.path(), self.state.path()).unwrap().snapshot();
        (in_force(&snapshot), snapshot.problems.iter().map(ToString::to_string).collect())
    }
}

/// No pass has told anything yet.
fn no_reports() -> stagenet::agent::runner::Reports {
    tokio::sync::watch::channel(None).1
}

fn in_force(snapshot: &Snapshot) -> Vec<String> {
    let line =
        |m: &std::sync::Arc<stagenet::api::NatMapping>| format!("{} → {}", m.metadata.name.as_deref().unwrap(), m.spec.target.text());
    snapshot.mappings.iter().map(line).collect()
}

#[test]
fn an_agent_that_starts_while_a_file_is_broken_knows_its_last_good_version() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    started.write("b.yaml", &mapping("b", 4, 4));
    assert_eq!(started.read().1, Vec::<String>::new());

    started.write("a.yaml", "apiVersion: [");
    for _ in 0..3 {
        let (mappings, problems) = started.read();
        assert_eq!(mappings, ["a → 192.168.200.3", "b → 192.168.200.4"]);
        assert!(
            problems.iter().any(|p| p.contains("a.yaml: cannot be used as it is since 20")
                && p.contains("the last good version of 20")
                && p.contains("NatMapping default/a")),
            "{problems:?}"
        );
    }

    started.write("a.yaml", &mapping("a", 3, 8));
    assert_eq!(
        started.read(),
        (vec!["a → 192.168.200.8".to_owned(), "b → 192.168.200.4".to_owned()], vec![])
    );
    started.remove("a.yaml");
    assert_eq!(started.read().0, ["b → 192.168.200.4"], "a deleted file is not brought back");
    started.write("a.yaml", "apiVersion: [");
    assert_eq!(started.read().0, ["b → 192.168.200.4"], "not even by a broken file of its name");
}

/// One of two objects of a file is wrong, the other one changes: both are in force as each was last good.
#[test]
fn of_a_file_that_is_half_wrong_each_object_is_remembered_by_itself() {
    let started = Started::new();
    started.write("both.yaml", &format!("{}{}", mapping("a", 3, 3), mapping("b", 4, 4)));
    started.read();
    let half = format!("{}{}", mapping("a", 3, 3).replace("target", "tarket"), mapping("b", 4, 9));
    started.write("both.yaml", &half);
    let expected = ["a → 192.168.200.3", "b → 192.168.200.9"];
    let sorted = |mut m: Vec<String>| {
        m.sort();
        m
    };
    assert_eq!(sorted(started.read().0), expected);
    started.write("both.yaml", "[");
    assert_eq!(sorted(started.read().0), expected, "b in the version that was good last");
}

#[test]
fn records_are_bounded_to_what_is_there_and_a_damaged_one_harms_nothing() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    started.read();
    let folder = started.state.path().join("last-good");
    let records = || {
        std::fs::read_dir(&folder)
            .unwrap()
            .map(|e| e.unwrap().path())
            .collect::<BTreeSet<_>>()
    };
    assert_eq!(records().len(), 2);
    for record in records() {
        std::fs::write(record, "{").unwrap();
    }
    assert_eq!(started.read(), (vec!["a → 192.168.200.3".to_owned()], vec![]));
    assert_eq!(records().len(), 2, "written anew");
    std::fs::write(folder.join("foreign.json"), "kept").unwrap();
    assert_eq!(source::directory::clear(started.state.path()).unwrap(), 2);
    assert_eq!(records(), BTreeSet::from([folder.join("foreign.json")]));
    assert_eq!(source::directory::clear(started.state.path()).unwrap(), 0);
    started.write("a.yaml", "[");
    assert_eq!(started.read().0, Vec::<String>::new(), "nothing is remembered after a cleanup");
}

#[test]
fn without_a_state_directory_files_are_read_all_the_same() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    let file = started.state.path().join("file");
    std::fs::write(&file, "").unwrap();
    let snapshot = source::directory::read(started.dir.path(), &file.join("state")).unwrap().snapshot();
    assert_eq!(
        (in_force(&snapshot), snapshot.problems),
        (vec!["a → 192.168.200.3".to_owned()], vec![])
    );
}

async fn next(snapshots: &mut source::Snapshots, wanted: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
    let found = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            if let Some(snapshot) = snapshots.borrow_and_update().clone().filter(|s| wanted(s)) {
                return snapshot;
            }
            snapshots.changed().await.unwrap();
        }
    });
    found.await.unwrap()
}

/// A volume that is not mounted yet, or no longer, takes nothing away; an emptied directory does.
#[tokio::test]
async fn a_directory_that_is_gone_takes_nothing_and_an_empty_one_everything() {
    let started = Started::new();
    started.write("a.yaml", &mapping("a", 3, 3));
    let (path, away) = (started.dir.path().to_owned(), started.dir.path().with_extension("away"));
    let expected = ["a → 192.168.200.3"];

    std::fs::rename(&path, &away).unwrap();
    let (mut snapshots, task) = source::directory::watch(&path, started.state.path(), no_reports()).unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(
        snapshots.borrow().is_none(),
        "nothing is known, so nothing is delivered and no pass is run"
    );
    std::fs::rename(&away, &path).unwrap();
    let found = next(&mut snapshots, |_| true).await;
    assert_eq!((in_force(&found), &found.problems), (expected.map(str::to_owned).to_vec(), &vec![]));

    std::fs::rename(&path, &away).unwrap();
    let found = next(&mut snapshots, |s| !s.problems.is_empty()).await;
    assert_eq!(in_force(&found), expected);
    assert!(found.problems[0].message.contains("stays in force"), "{:?}", found.problems);
    drop(snapshots);
    task.abort();

    let (mut snapshots, task) = source::directory::watch(&path, started.state.path(), no_reports()).unwrap();
    let found = next(&mut snapshots, |_| true).await;
    assert_eq!(in_force(&found), expected, "an agent that starts now knows it from its predecessor");
    assert!(!found.problems.is_empty());
    std::fs::create_dir(&path).unwrap();
    let found = next(&mut snapshots, |s| s.problems.is_empty()).await;
    assert_eq!(in_force(&found), Vec::<String>::new(), "an empty directory is a wish");
    task.abort();
    std::fs::remove_dir_all(&away).unwrap();
}
