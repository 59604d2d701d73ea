//! Files that are replaced whole: a reader, and a crash, meets the old content or the new, never half of it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Puts `bytes` into `path`, on disk when this returns.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace_with(path, |file| file.write_all(bytes).map(|()| true)).map(drop)
}

/// Puts what `fill` writes into `path`, on disk when this returns. If `fill` says that it is not to be, the file stays as it is. The answer is whether it was put there.
pub(super) fn replace_with(path: &Path, fill: impl FnOnce(&mut File) -> io::Result<bool>) -> io::Result<bool> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path names no file"))?;
    let temporary = path.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        let wanted = fill(&mut file)?;
        if wanted {
            file.sync_all()?;
            fs::rename(&temporary, path)?;
        }
        Ok(wanted)
    });
    if !matches!(written, Ok(true)) {
        // The half-written file is of no use; that it cannot be removed adds nothing to the error.
        let _ = fs::remove_file(&temporary);
    }
    written
}
