//! Manifests named on the command line: files, directories, and standard input.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::CliError;
use crate::api::decode::{self, Manifests};

/// What stands for standard input.
const STDIN: &str = "-";

/// Reads all files, all *.yaml and *.yml files of directories in the order of their names, and standard input for `-`.
pub(super) fn read(paths: &[PathBuf]) -> Result<Manifests, CliError> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == STDIN {
            let name = PathBuf::from("standard input");
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map_err(|e| failed(&name, &e))?;
            files.push((name.display().to_string(), text));
            continue;
        }
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
