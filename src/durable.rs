//! Small files that must be whole after a crash.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts new content in the place of a file (mode 0600) so that a crash leaves the old or the new one, and the new one once this returned.
/// One caller per path at a time.
/// # Errors
/// The file system refuses; the old file stands.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, content, File::sync_all)?;
    sync_folder(path)
}

/// The same for what is only true of this boot, as processes are: a crash of ours leaves it whole, a loss of power may cut it off.
/// # Errors
/// The file system refuses; the old file stands.
pub fn replace_for_this_boot(path: &Path, content: &[u8]) -> io::Result<()> {
    put(path, content, |_| Ok(()))
}

/// The same, in an empty file that was made ahead, which is used up; where there is none one is made.
/// # Errors
/// The file system refuses; the old file stands.
pub fn replace_for_this_boot_in(blank: &Path, path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = draft_of(path);
    match std::fs::rename(blank, &draft) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return replace_for_this_boot(path, content),
        Err(error) => return Err(error),
    }
    let written = OpenOptions::new().write(true).truncate(true).open(&draft).and_then(|mut file| file.write_all(content));
    written.and_then(|()| std::fs::rename(&draft, path)).inspect_err(|_| {
        let _ = std::fs::remove_file(&draft);
    })
}

fn put(path: &Path, content: &[u8], sync: impl Fn(&File) -> io::Result<()>) -> io::Result<()> {
    let draft = write_draft(path, content, sync)?;
    std::fs::rename(&draft, path).inspect_err(|_| {
        let _ = std::fs::remove_file(&draft);
    })
}

/// Makes a file (mode 0600) with its content, or leaves the one that is there. Any number of callers at a time.
/// # Errors
/// The file system refuses.
pub fn make_once(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = write_draft(path, content, File::sync_all)?;
    let linked = match std::fs::hard_link(&draft, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    };
    std::fs::remove_file(&draft)?;
    linked?;
    sync_folder(path)
}

fn write_draft(path: &Path, content: &[u8], sync: impl Fn(&File) -> io::Result<()>) -> io::Result<std::path::PathBuf> {
    let draft = draft_of(path);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    if let Err(error) = file.write_all(content).and_then(|()| sync(&file)) {
        // On a full disk a half draft would only make it fuller.
        let _ = std::fs::remove_file(&draft);
        return Err(error);
    }
    Ok(draft)
}

fn draft_of(path: &Path) -> std::path::PathBuf {
    path.with_extension(format!("draft-{}", uuid::Uuid::new_v4().simple()))
}

/// Brings the names in the folder of a path to the disk.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}
