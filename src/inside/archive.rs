//! Folders on their way between the controller and a pod: one stream of entries, made and read on both sides.
//!
//! An entry is a header (kind, root, mode, length of the path, length of the content), the path beneath its root, and the content. What is
//! known of an earlier state (`Manifest`) is left out, and what is gone since is said first, children before their folders, so that nothing
//! is ever removed but single names. Both sides treat what they read as hostile: paths are checked, every step goes beneath the root through
//! no link, sizes and counts are limited, and what is neither file, folder nor link is passed over.

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Longest path of an entry.
const PATH_BYTES_MAX: usize = 4095;
/// Deepest folder.
const DEPTH_MAX: usize = 128;
/// Bytes that are copied at once.
const COPY_BYTES: usize = 256 * 1024;
/// Size of the header of an entry.
const HEADER_BYTES: usize = 14;
/// What changed so short before a look may change again without another time: it is sent once more.
const SETTLED_NANOS: i128 = 1_000_000_000;
/// Most tries to open a name while the kernel sees renames elsewhere.
const TRIES_MAX: usize = 100;

/// The folders that travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Root {
    /// `/workspace`.
    Workspace = 0,
    /// HOME.
    Home = 1,
    /// Objects of the base repository; only on the way in.
    Base = 2,
    /// `/mosaic/out`; only on the way out.
    Out = 3,
}

impl Root {
    const ALL: [Self; 4] = [Self::Workspace, Self::Home, Self::Base, Self::Out];

    fn of(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|root| *root as u8 == number)
    }
}

/// What an entry does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Folder = b'D',
    File = b'F',
    Link = b'L',
    Gone = b'X',
    End = b'E',
}

/// Bounds of one archive.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most bytes of content.
    pub bytes_max: u64,
    /// Most entries.
    pub entries_max: u64,
}

/// What was seen of one name: the same again means the same content, since nobody without privileges sets a ctime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    changed_nanos: i128,
    size: u64,
    mode: u32,
}

impl Stamp {
    #[allow(clippy::unnecessary_cast, clippy::useless_conversion, reason = "the types differ between machines")]
    fn of(found: &Stat) -> Self {
        let changed_nanos = i128::from(found.st_ctime) * 1_000_000_000 + i128::from(found.st_ctime_nsec as i64);
        Self { inode: found.st_ino as u64, changed_nanos, size: u64::try_from(found.st_size).unwrap_or(0), mode: found.st_mode as u32 }
    }

    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// A folder is the same while it is a folder: what is in it has stamps of its own.
    fn is_same(&self, now: &Self) -> bool {
        if self.kind() == FileType::Directory { now.kind() == FileType::Directory && self.mode == now.mode } else { self == now }
    }
}

/// What the other side has.
#[derive(Debug, Default)]
pub struct Manifest {
    names: BTreeMap<(Root, Vec<u8>), Option<Stamp>>,
}

/// One name in a folder while it is looked at.
struct Found<'a> {
    folder: BorrowedFd<'a>,
    name: &'a CStr,
    path: &'a [u8],
    stamp: Stamp,
}

/// Opens a folder that is a root, by a path of ours.
/// # Errors
/// It is none.
pub fn open_root(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Manifest {
    /// Notes what is there now as what the other side has.
    /// # Errors
    /// Could not look.
    pub fn note(&mut self, root: Root, folder: &OwnedFd) -> io::Result<()> {
        walk(folder, &mut Vec::new(), 0, &mut |found| {
            self.names.insert((root, found.path.to_vec()), Some(found.stamp));
            Ok(())
        })
    }

    /// Writes what is different now, and what is gone; returns what the other side has once it took all of that.
    /// # Errors
    /// Could not look, more than the bounds allow, or nobody takes it.
    pub fn write_changes(&self, roots: &[(Root, &OwnedFd)], bounds: Bounds, out: &mut dyn Write) -> io::Result<Self> {
        let now_nanos = i128::from(rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec) * 1_000_000_000;
        let mut seen = BTreeMap::new();
        for (root, folder) in roots {
            walk(folder, &mut Vec::new(), 0, &mut |found| {
                seen.insert((*root, found.path.to_vec()), found.stamp);
                if seen.len() as u64 > bounds.entries_max {
                    return Err(too_much(format!("more than {} files, folders and links", bounds.entries_max)));
                }
                Ok(())
            })?;
        }
        let is_kind = |name: &(Root, Vec<u8>), stamp: &Option<Stamp>| match (seen.get(name), stamp) {
            (Some(now), Some(stamp)) => now.kind() == stamp.kind(),
            (Some(_), None) => true,
            (None, _) => false,
        };
        // Children come after their folders in this order, so they go before them.
        for ((root, path), _) in self.names.iter().rev().filter(|(name, stamp)| !is_kind(name, stamp)) {
            entry(out, Kind::Gone, *root, 0, path, 0)?;
        }
        let mut sent = 0_u64;
        let mut after = Self::default();
        for (root, folder) in roots {
            walk(folder, &mut Vec::new(), 0, &mut |found| {
                let name = (*root, found.path.to_vec());
                let known = self.names.get(&name).and_then(Option::as_ref);
                let is_known = known.is_some_and(|known| known.is_same(&found.stamp));
                // Of another kind than a moment ago: it is still in the way there.
                let is_late = seen.get(&name).is_none_or(|seen| seen.kind() != found.stamp.kind());
                if is_late {
                    return Ok(());
                }
                let wrote = if is_known { true } else { found.write(*root, &mut sent, bounds, out)? };
                if wrote {
                    let settled = found.stamp.kind() == FileType::Directory || found.stamp.changed_nanos + SETTLED_NANOS < now_nanos;
                    after.names.insert(name, Some(found.stamp).filter(|_| settled || is_known));
                }
                Ok(())
            })?;
        }
        entry(out, Kind::End, Root::Workspace, 0, b"", 0)?;
        Ok(after)
    }
}

impl Found<'_> {
    /// Writes it; false: it went or is no longer what it was.
    fn write(&self, root: Root, sent: &mut u64, bounds: Bounds, out: &mut dyn Write) -> io::Result<bool> {
        let mode = self.stamp.mode & 0o777;
        match self.stamp.kind() {
            FileType::Directory => entry(out, Kind::Folder, root, mode, self.path, 0)?,
            FileType::Symlink => {
                let Ok(target) = rustix::fs::readlinkat(self.folder, self.name, Vec::new()) else { return Ok(false) };
                let target = target.as_bytes();
                entry(out, Kind::Link, root, mode, self.path, target.len() as u64)?;
                out.write_all(target)?;
            }
            _ => {
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
                let file = open_own(self.folder, self.name, flags);
                let Ok(file) = file else { return Ok(false) };
                let found = rustix::fs::fstat(&file)?;
                if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
                    return Ok(false);
                }
                let length = u64::try_from(found.st_size).unwrap_or(0);
                *sent += length;
                if *sent > bounds.bytes_max {
                    return Err(too_much(format!("more than {} bytes", bounds.bytes_max)));
                }
                entry(out, Kind::File, root, mode, self.path, length)?;
                // One that shrinks meanwhile is filled up: it is sent again, for it has changed.
                let copied = copy(&mut File::from(file), out, length)?;
                io::copy(&mut io::repeat(0).take(length - copied), out)?;
            }
        }
        Ok(true)
    }
}

fn too_much(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, what)
}

/// Copies what is there, at most `length` bytes.
fn copy(from: &mut dyn Read, out: &mut dyn Write, length: u64) -> io::Result<u64> {
    let mut from = from.take(length);
    // Most files are small, and need no large buffer.
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(COPY_BYTES).clamp(1, COPY_BYTES)];
    let mut copied = 0;
    loop {
        let length = match from.read(&mut bytes) {
            Ok(0) => return Ok(copied),
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        out.write_all(&bytes[..length])?;
        copied += length as u64;
    }
}

/// Opens a name that its owner may have closed to himself.
fn open_own(folder: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> Result<OwnedFd, Errno> {
    match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // By descriptor: the name may be a link to anywhere by now.
            let held = rustix::fs::openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
            if FileType::from_raw_mode(rustix::fs::fstat(&held)?.st_mode) == FileType::Symlink {
                return Err(Errno::ACCESS);
            }
            rustix::fs::chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), Mode::RWXU)?;
            rustix::fs::openat(folder, name, flags, Mode::empty())
        }
        other => other,
    }
}

fn entry(out: &mut dyn Write, kind: Kind, root: Root, mode: u32, path: &[u8], length: u64) -> io::Result<()> {
    let mut header = [0; HEADER_BYTES];
    (header[0], header[1]) = (kind as u8, root as u8);
    header[2..4].copy_from_slice(&u16::try_from(mode & 0o777).expect("nine bits").to_le_bytes());
    header[4..6].copy_from_slice(&u16::try_from(path.len()).map_err(|_| too_much("a path that is too long".to_owned()))?.to_le_bytes());
    header[6..].copy_from_slice(&length.to_le_bytes());
    out.write_all(&header)?;
    out.write_all(path)
}

/// Shows every file, folder and link beneath a folder, folders before what is in them; through no link and onto no other file system.
fn walk(folder: &OwnedFd, path: &mut Vec<u8>, depth: usize, show: &mut dyn FnMut(&Found<'_>) -> io::Result<()>) -> io::Result<()> {
    let device = rustix::fs::fstat(folder)?.st_dev;
    let mut names: Vec<CString> = Vec::new();
    for name in Dir::read_from(folder)? {
        let name = name?.file_name().to_owned();
        if !matches!(name.as_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    for name in names {
        // What goes while we look is no longer there.
        let Ok(found) = rustix::fs::statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let stamp = Stamp::of(&found);
        // Only folders are compared: the files of an overlay can be of another device than their folders.
        let is_elsewhere = stamp.kind() == FileType::Directory && found.st_dev != device;
        if is_elsewhere || !matches!(stamp.kind(), FileType::Directory | FileType::RegularFile | FileType::Symlink) {
            continue;
        }
        let before = path.len();
        if before > 0 {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        if path.len() > PATH_BYTES_MAX || depth >= DEPTH_MAX {
            return Err(too_much(format!("folders nested deeper than {DEPTH_MAX}, or a path longer than {PATH_BYTES_MAX} bytes")));
        }
        show(&Found { folder: folder.as_fd(), name: &name, path, stamp })?;
        if stamp.kind() == FileType::Directory {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let inner = open_own(folder.as_fd(), &name, flags);
            if let Ok(inner) = inner {
                walk(&inner, path, depth + 1, show)?;
            }
        }
        path.truncate(before);
    }
    Ok(())
}

/// Lays out what an archive says beneath the roots that are given; entries of other roots are read and left out. Done again it changes
/// nothing more.
/// # Errors
/// It is no archive, wants out of its roots, has more than the bounds allow, or the disk refuses.
pub fn lay_out(from: &mut dyn Read, roots: &[(Root, &OwnedFd)], bounds: Bounds) -> io::Result<()> {
    let mut laying = Laying { roots, folder: None };
    let (mut bytes, mut entries) = (0_u64, 0_u64);
    loop {
        let mut header = [0; HEADER_BYTES];
        from.read_exact(&mut header)?;
        let number = |range: std::ops::Range<usize>| header[range].iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
        let (mode, path_length, length) = (number(2..4), number(4..6), number(6..HEADER_BYTES));
        let kind = [Kind::Folder, Kind::File, Kind::Link, Kind::Gone, Kind::End].into_iter().find(|kind| *kind as u8 == header[0]);
        let (Some(kind), Some(root)) = (kind, Root::of(header[1])) else { return Err(no_archive("an entry of another kind")) };
        if kind == Kind::End {
            return Ok(());
        }
        (bytes, entries) = (bytes.saturating_add(length), entries + 1);
        if bytes > bounds.bytes_max || entries > bounds.entries_max {
            return Err(too_much(format!("more than {} bytes or {} entries", bounds.bytes_max, bounds.entries_max)));
        }
        let mut path = vec![0; usize::try_from(path_length).expect("two bytes")];
        from.read_exact(&mut path)?;
        check_path(&path)?;
        let mut content = from.take(length);
        laying.lay(kind, root, u32::try_from(mode).expect("two bytes") & 0o777, &path, &mut content, length)?;
        // What was not wanted is read all the same.
        let left = content.limit();
        copy(&mut content, &mut io::sink(), left)?;
        if content.limit() > 0 {
            return Err(no_archive("it ends within an entry"));
        }
    }
}

fn no_archive(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("this is no archive of ours: {what}"))
}

fn check_path(path: &[u8]) -> io::Result<()> {
    let is_name = |part: &[u8]| !part.is_empty() && !matches!(part, b"." | b"..") && !part.contains(&0);
    let fits = path.len() <= PATH_BYTES_MAX && path.split(|byte| *byte == b'/').count() <= DEPTH_MAX + 1;
    if fits && path.split(|byte| *byte == b'/').all(is_name) { Ok(()) } else { Err(no_archive("a path that leads elsewhere")) }
}

/// Lays out entries; the folder of the last one stays open, for the next one is mostly in the same.
struct Laying<'a> {
    roots: &'a [(Root, &'a OwnedFd)],
    folder: Option<(Root, Vec<u8>, OwnedFd)>,
}

impl Laying<'_> {
    fn lay(&mut self, kind: Kind, root: Root, mode: u32, path: &[u8], content: &mut dyn Read, length: u64) -> io::Result<()> {
        let Some((_, top)) = self.roots.iter().find(|(known, _)| *known == root) else { return Ok(()) };
        let (parent, name) = match path.iter().rposition(|byte| *byte == b'/') {
            Some(at) => (&path[..at], &path[at + 1..]),
            None => (&b""[..], path),
        };
        let name = CString::new(name)?;
        let is_open = self.folder.as_ref().is_some_and(|(known, at, _)| *known == root && at == parent);
        if !is_open {
            let opened = match open_beneath(top, parent) {
                // What is in a folder that is gone is gone.
                Err(Errno::NOENT | Errno::NOTDIR) if kind == Kind::Gone => return Ok(()),
                other => other?,
            };
            self.folder = Some((root, parent.to_vec(), opened));
        }
        let (_, _, folder) = self.folder.as_ref().expect("it was just opened");
        match kind {
            Kind::Folder => make_folder(folder, &name, mode),
            Kind::File => {
                remove(folder, &name)?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::openat(folder, &name, flags, Mode::RUSR | Mode::WUSR)?;
                rustix::fs::fchmod(&file, Mode::from_raw_mode(mode | 0o600))?;
                copy(content, &mut File::from(file), length).map(drop)
            }
            Kind::Link => {
                let mut target = Vec::new();
                content.take(PATH_BYTES_MAX as u64 + 1).read_to_end(&mut target)?;
                if target.is_empty() || target.len() > PATH_BYTES_MAX {
                    return Err(no_archive("a link to nowhere"));
                }
                remove(folder, &name)?;
                Ok(rustix::fs::symlinkat(OsStr::from_bytes(&target), folder, &name)?)
            }
            Kind::Gone => match remove(folder, &name) {
                // Laid out before: what took the place of the one that is gone is a folder with something in it.
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
                other => other,
            },
            Kind::End => Ok(()),
        }
    }
}

/// Opens a folder beneath a root: through no link, and on the same file system.
fn open_beneath(top: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    // A rename elsewhere on the system can make the kernel ask for another try.
    for _ in 0..TRIES_MAX {
        match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn make_folder(folder: &OwnedFd, name: &CStr, mode: u32) -> io::Result<()> {
    let mode = Mode::from_raw_mode(mode | 0o700);
    match rustix::fs::mkdirat(folder, name, mode) {
        Err(Errno::EXIST) => {
            let found = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(found.st_mode) != FileType::Directory {
                remove(folder, name)?;
                rustix::fs::mkdirat(folder, name, mode)?;
            }
        }
        other => other?,
    }
    let made = open_own(folder.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC)?;
    // As it was there, whatever the mask says here.
    Ok(rustix::fs::fchmod(&made, mode)?)
}

/// Removes one name, or an empty folder.
fn remove(folder: &OwnedFd, name: &CStr) -> io::Result<()> {
    let removed = match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR),
        other => other,
    };
    match removed {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    const BOUNDS: Bounds = Bounds { bytes_max: 1 << 20, entries_max: 1000 };

    fn changes(manifest: &Manifest, top: &Path) -> (Vec<u8>, Manifest) {
        let mut out = Vec::new();
        let root = open_root(top).unwrap();
        let after = manifest.write_changes(&[(Root::Workspace, &root)], BOUNDS, &mut out).unwrap();
        (out, after)
    }

    fn laid(archive: &[u8], top: &Path) -> io::Result<()> {
        let root = open_root(top).unwrap();
        lay_out(&mut &*archive, &[(Root::Workspace, &root)], BOUNDS)
    }

    /// Everything beneath a folder, by path.
    fn listing(top: &Path) -> BTreeMap<Vec<u8>, (u32, Vec<u8>)> {
        let mut all = BTreeMap::new();
        walk(&open_root(top).unwrap(), &mut Vec::new(), 0, &mut |found| {
            let path = top.join(OsStr::from_bytes(found.path));
            let content = match found.stamp.kind() {
                FileType::Directory => Vec::new(),
                FileType::Symlink => fs::read_link(path).unwrap().into_os_string().as_bytes().to_vec(),
                _ => fs::read(path).unwrap(),
            };
            all.insert(found.path.to_vec(), (found.stamp.mode, content));
            Ok(())
        })
        .unwrap();
        all
    }

    #[test]
    fn what_changed_arrives_and_the_rest_does_not_travel() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (from, to) = (here.path(), there.path());
        fs::create_dir_all(from.join("a/b")).unwrap();
        fs::write(from.join("a/b/file"), "one").unwrap();
        fs::write(from.join("run"), "#!").unwrap();
        fs::set_permissions(from.join("run"), fs::Permissions::from_mode(0o755)).unwrap();
        symlink("../../outside", from.join("a/link")).unwrap();
        let (archive, _) = changes(&Manifest::default(), from);
        laid(&archive, to).unwrap();
        assert_eq!(listing(from), listing(to));
        let mut known = Manifest::default();
        known.note(Root::Workspace, &open_root(from).unwrap()).unwrap();
        assert!(changes(&known, from).0.len() < 64, "nothing has changed");
        // A folder becomes a file, a file a folder, a link goes, a file appears in a folder that was there.
        fs::remove_dir_all(from.join("a")).unwrap();
        fs::write(from.join("a"), "now a file").unwrap();
        fs::remove_file(from.join("run")).unwrap();
        fs::create_dir(from.join("run")).unwrap();
        fs::write(from.join("run/new"), vec![7; 3000]).unwrap();
        let (archive, after) = changes(&known, from);
        laid(&archive, to).unwrap();
        assert_eq!(listing(from), listing(to));
        // Taken twice it is the same, and a file that was only just written travels once more.
        laid(&archive, to).unwrap();
        assert_eq!(listing(from), listing(to));
        let (archive, _) = changes(&after, from);
        assert!(archive.len() > 3000);
    }

    #[test]
    fn hostile_archives_stay_beneath_their_root() {
        let top = tempfile::tempdir().unwrap();
        let (root, outside) = (top.path().join("root"), top.path().join("outside"));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&outside).unwrap();
        symlink(&outside, root.join("link")).unwrap();
        for path in ["../outside/x", "/etc/x", "a//b", "./x", "..", "", "link/x", "a\0b"] {
            let mut archive = Vec::new();
            entry(&mut archive, Kind::File, Root::Workspace, 0o644, path.as_bytes(), 1).unwrap();
            archive.push(b'!');
            entry(&mut archive, Kind::End, Root::Workspace, 0, b"", 0).unwrap();
            assert!(laid(&archive, &root).is_err(), "{path:?}");
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        // A link in the place of a file is replaced, never written through; set-user-id bits do not travel.
        symlink(outside.join("victim"), root.join("file")).unwrap();
        let mut archive = Vec::new();
        entry(&mut archive, Kind::File, Root::Workspace, 0o4755, b"file", 1).unwrap();
        archive.push(b'!');
        entry(&mut archive, Kind::End, Root::Workspace, 0, b"", 0).unwrap();
        laid(&archive, &root).unwrap();
        assert!(!outside.join("victim").exists());
        assert_eq!(fs::symlink_metadata(root.join("file")).unwrap().permissions().mode() & 0o7777, 0o755);
        // Cut off, endless, and of other roots.
        assert!(laid(&archive[..archive.len() - 3], &root).is_err());
        let mut endless = Vec::new();
        entry(&mut endless, Kind::File, Root::Workspace, 0o644, b"big", u64::MAX).unwrap();
        assert!(laid(&endless, &root).is_err());
        let mut other = Vec::new();
        entry(&mut other, Kind::File, Root::Home, 0o644, b"home", 1).unwrap();
        other.push(b'!');
        entry(&mut other, Kind::End, Root::Workspace, 0, b"", 0).unwrap();
        laid(&other, &root).unwrap();
        assert!(!root.join("home").exists());
    }
}
