//! Generated files are fresh: `crds/`, `docs/reasons.md`, `docs/api.md`. `UPDATE=1 cargo test --test crds` writes them anew.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::path::Path;

/// Compares a committed file with what the code generates, or writes it.
fn fresh(path: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, wanted).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == wanted, "{} is stale: run UPDATE=1 cargo test --test crds", path.display());
}

#[test]
fn crds_are_fresh() {
    for (name, text) in stagenet::cli::crd::crd_files() {
        fresh(&format!("crds/{name}"), &text);
    }
}

#[test]
fn reasons_are_fresh() {
    fresh("docs/reasons.md", &stagenet::api::reasons::markdown());
}

#[test]
fn field_tables_are_fresh() {
    fresh("docs/api.md", &stagenet::cli::apidoc::markdown());
}
