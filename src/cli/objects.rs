//! Manifests named on the command line: files and directories.

use std::fs;
use std::path::{Path, PathBuf};

use super::CliError;
use crate::api::decode::{self, Manifests};

/// Reads all files, and all *.yaml and *.yml files of directories, in the order of their names.
pub(super) fn read(paths: &[PathBuf]) -> Result<Manifests, CliError> {
    let mut files = Vec::new();
    for path in paths {
        for file in list(path)? {
            let text = fs::read_to_string(&file).map_err(|e| failed(&file, &e))?;
            files.push((file.display().to_string(), text));
        }
    }
    Ok(decode::decode(files.iter().map(|(name, text)| (name.as_str(), text.as_str()))))
}

fn list(path: &Path) -> Result<Vec<PathBuf>, CliError> {
    let meta = fs::metadata(path).map_err(|e| failed(path, &e))?;
    if !meta.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(|e| failed(path, &e))? {
        let file = entry.map_err(|e| failed(path, &e))?.path();
        let hidden = file.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && file.is_file() && file.extension().is_some_and(|e| e == "yaml" || e == "yml") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn failed(path: &Path, error: &std::io::Error) -> CliError {
    CliError::Input(format!("reading {}: {error}", path.display()))
}
