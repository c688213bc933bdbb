//! The file system that a sandbox sees: a small tmpfs root with what is bound into it, and nothing of the host beside that.
//!
//! Runs as root in the new mount namespace, before the user namespace is entered: all mounts belong to the host's user namespace, so no
//! capability that could be had inside can change them. Everything is private and goes with the namespace; the host never sees a mount.
//! Sources are paths that the controller chose; nothing in them is read here.

use crate::inside::landlock::FORBIDDEN_FILE;
use crate::inside::wire::{FILE_TASK, FOLDER_CONTROL, FOLDER_LINK, FOLDER_OUT, HOME, LaunchSpec, USER, WORKSPACE};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use std::ffi::CString;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

/// Size of the root itself: it holds a few small files and mount points.
const ROOT_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// A tmpfs has one inode for so many bytes of its size: its inodes are memory as well.
const TMPFS_BYTES_PER_INODE: u64 = 16 * 1024;
/// Folders of the host with programs and libraries; links stay links.
const SYSTEM_FOLDERS: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// What programs need of the host's `/etc`: trust anchors, links of alternatives, the linker's cache, the time zone, numbers.
const ETC_SHARED: [&str; 9] =
    ["ssl", "ca-certificates", "pki", "crypto-policies", "alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime"];
/// Devices without any state of the host.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const DEVICE_LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];
/// Kernel files whose content is the host's business; covered where they exist.
const PROC_COVERED: [&str; 6] = ["kcore", "keys", "key-users", "sched_debug", "sysrq-trigger", "timer_list"];

const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
const WRITABLE: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;

/// What was tried, and why it failed.
pub type Outcome<T> = Result<T, String>;

/// Says what was tried on what.
fn because<E: std::fmt::Display>(what: &str, path: &Path) -> impl FnOnce(E) -> String {
    move |error| format!("failed to {what} {}: {error}", path.display())
}

/// Makes the new root and changes into it. The working directory must be the run's folder; afterwards it is `/workspace`.
/// # Errors
/// Says which mount failed and why.
pub fn enter_new_root(spec: &LaunchSpec) -> Outcome<()> {
    let host = Path::new("/");
    rustix::mount::mount_change(host, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(because("make mounts private below", host))?;
    let folder = std::env::current_dir().map_err(because("find the folder of the run below", host))?;
    // Any folder will do that is not bound below; it is covered in this namespace only.
    let root = folder.join(FOLDER_CONTROL);
    mount_tmpfs(&root, "0755", ROOT_BYTES_MAX, MountFlags::empty())?;
    std::env::set_current_dir(&root).map_err(because("enter", &root))?;
    bind_system()?;
    fill_etc(spec)?;
    make_devices(spec)?;
    make_folder("proc")?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Who cannot be looked into is not shown: PID 1.
    rustix::mount::mount("proc", "proc", "proc", flags, c"hidepid=2").map_err(because("mount", Path::new("/proc")))?;
    cover_proc()?;
    write_file(FORBIDDEN_FILE.trim_start_matches('/'), b"")?;
    bind_run(spec, &folder)?;
    leave_host()?;
    crate::inside::system::set_mount_attributes_here(READ_ONLY).map_err(because("make read-only", host))?;
    std::env::set_current_dir(WORKSPACE).map_err(because("enter", Path::new(WORKSPACE)))
}

/// Makes the current folder the root, and lets go of the host's.
fn leave_host() -> Outcome<()> {
    let here = Path::new(".");
    rustix::process::pivot_root(here, here).map_err(because("change the root to", here))?;
    rustix::mount::unmount(here, UnmountFlags::DETACH).map_err(because("let go of the host's root", here))?;
    std::env::set_current_dir("/").map_err(because("enter", Path::new("/")))
}

fn bind_system() -> Outcome<()> {
    for name in SYSTEM_FOLDERS {
        let source = Path::new("/").join(name);
        match fs::symlink_metadata(&source) {
            Ok(found) if found.is_symlink() => {
                let to = fs::read_link(&source).map_err(because("read link", &source))?;
                symlink(to, name).map_err(because("make link", &source))?;
            }
            Ok(found) if found.is_dir() => bind(&source, name, READ_ONLY)?,
            _ => {}
        }
    }
    Ok(())
}

fn fill_etc(spec: &LaunchSpec) -> Outcome<()> {
    let (uid, gid) = (spec.uid, spec.gid);
    make_folder("etc")?;
    let files = [
        ("passwd", format!("root:x:0:0:root:/:/usr/sbin/nologin\n{USER}:x:{uid}:{gid}::{HOME}:/bin/sh\n")),
        ("group", format!("root:x:0:\n{USER}:x:{gid}:\n")),
        ("hosts", "127.0.0.1 localhost mosaic\n::1 localhost mosaic\n".to_owned()),
        ("hostname", "mosaic\n".to_owned()),
        ("resolv.conf", String::new()),
        ("nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files\nservices: files\nprotocols: files\n".to_owned()),
        ("gitconfig", String::new()),
        ("shells", "/bin/sh\n/bin/bash\n".to_owned()),
    ];
    for (name, text) in files {
        write_file(&format!("etc/{name}"), text.as_bytes())?;
    }
    for name in ETC_SHARED {
        let source = Path::new("/etc").join(name);
        if source.exists() {
            bind(&source, &format!("etc/{name}"), READ_ONLY)?;
        }
    }
    symlink("/usr/lib/os-release", "etc/os-release").map_err(because("make link", Path::new("/etc/os-release")))?;
    symlink("/proc/self/mounts", "etc/mtab").map_err(because("make link", Path::new("/etc/mtab")))
}

fn make_devices(spec: &LaunchSpec) -> Outcome<()> {
    make_folder("dev/pts")?;
    for name in DEVICES {
        bind(&Path::new("/dev").join(name), &format!("dev/{name}"), libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    }
    let options = CString::new("newinstance,ptmxmode=0666,mode=0620").expect("no NUL");
    rustix::mount::mount("devpts", "dev/pts", "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options.as_c_str())
        .map_err(because("mount", Path::new("/dev/pts")))?;
    make_folder("dev/shm")?;
    mount_tmpfs(Path::new("dev/shm"), "1777", spec.tmp_bytes_max, MountFlags::NOEXEC)?;
    for (to, name) in DEVICE_LINKS {
        let path = Path::new("dev").join(name);
        symlink(to, &path).map_err(because("make link", &path))?;
    }
    Ok(())
}

fn cover_proc() -> Outcome<()> {
    for name in PROC_COVERED {
        let path = Path::new("proc").join(name);
        if path.exists() {
            rustix::mount::mount_bind("dev/null", &path).map_err(because("cover", &path))?;
        }
    }
    Ok(())
}

fn bind_run(spec: &LaunchSpec, folder: &Path) -> Outcome<()> {
    make_folder("tmp")?;
    mount_tmpfs(Path::new("tmp"), "1777", spec.tmp_bytes_max, MountFlags::empty())?;
    make_folder("var")?;
    make_folder("run")?;
    symlink("/tmp", "var/tmp").map_err(because("make link", Path::new("/var/tmp")))?;
    bind(&spec.tree, "workspace", WRITABLE)?;
    let home = HOME.trim_start_matches('/');
    if let Some(path) = &spec.home {
        bind(path, home, WRITABLE)?;
    } else {
        make_folder(home)?;
        mount_tmpfs(Path::new(home), "0755", spec.tmp_bytes_max, MountFlags::empty())?;
        rustix::fs::chown(home, Some(rustix::fs::Uid::from_raw(spec.uid)), Some(rustix::fs::Gid::from_raw(spec.gid)))
            .map_err(because("give away", Path::new(HOME)))?;
    }
    bind(&folder.join(FOLDER_OUT), "mosaic/out", WRITABLE)?;
    bind(&folder.join(FOLDER_LINK), "mosaic/link", READ_ONLY)?;
    let task = folder.join(FILE_TASK);
    if task.exists() {
        bind(&task, "mosaic/task.json", READ_ONLY)?;
    }
    if let Some(objects) = &spec.base_objects {
        bind(objects, "mosaic/base/objects", READ_ONLY)?;
    }
    for tool in &spec.tools {
        bind(&tool.host, &beneath_root(&tool.inside)?, READ_ONLY)?;
    }
    Ok(())
}

/// Binds a file or a folder with all mounts below it.
fn bind(source: &Path, target: &str, attributes: u64) -> Outcome<()> {
    let found = fs::metadata(source).map_err(because("find", source))?;
    if found.is_dir() {
        make_folder(target)?;
    } else {
        write_file(target, b"")?;
    }
    rustix::mount::mount_bind_recursive(source, target).map_err(because("bind", source))?;
    crate::inside::system::set_mount_attributes(Path::new(target), attributes).map_err(because("set the attributes of", source))
}

/// An absolute path inside, as a path beneath the new root, which is the working directory.
fn beneath_root(inside: &Path) -> Outcome<String> {
    let text = inside.to_str().and_then(|text| text.strip_prefix('/')).filter(|text| !text.split('/').any(|part| part == ".."));
    text.map(str::to_owned).ok_or_else(|| format!("{} is no absolute path inside", inside.display()))
}

fn make_folder(path: &str) -> Outcome<()> {
    fs::create_dir_all(path).map_err(because("make folder", Path::new(path)))
}

fn write_file(path: &str, bytes: &[u8]) -> Outcome<()> {
    let parent: PathBuf = Path::new(path).parent().map(Path::to_owned).unwrap_or_default();
    fs::create_dir_all(&parent).map_err(because("make folder", &parent))?;
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o644);
    let mut file = options.open(path).map_err(because("make file", Path::new(path)))?;
    file.write_all(bytes).map_err(because("write file", Path::new(path)))
}

fn mount_tmpfs(path: &Path, mode: &str, bytes_max: u64, more: MountFlags) -> Outcome<()> {
    let options = CString::new(format!("mode={mode},size={bytes_max},nr_inodes={}", bytes_max / TMPFS_BYTES_PER_INODE)).expect("no NUL");
    rustix::mount::mount("mosaic", path, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | more, options.as_c_str())
        .map_err(because("mount a tmpfs at", path))
}
