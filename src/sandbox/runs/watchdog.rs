//! The limits that no kernel holds for us: disk and inodes of a run, a flood of refused processes, and, where there are no control groups,
//! memory and having all processes that one may for long.
//!
//! A thread looks at every running sandbox again and again: it sums what the files of tree, HOME and `/mosaic/out` have allocated, and ends
//! a run that has more than it may. A look takes about one part in `LOOK_SHARE` of the thread's time, so that a large tree is looked at
//! less often; only what grows so fast that it would be over the limit by then is looked at sooner. What is counted: allocated blocks (a sparse file counts what it really has), each inode once however many names it has, and
//! files that are deleted but still open in a process of the run.
//!
//! Tree and HOME are kept between attempts. One that begins over its limit, because the one before it went over, has `GRACE` to remove what
//! is too much, and may grow by hardly anything meanwhile; far over the limit there is no grace.
//!
//! The same thread tells again of an end that nobody has looked at, and what goes on while a run is made.
//!
//! What it does not see: what is written and removed between two looks, files that are deleted and closed but still mapped, or on their way
//! through a socket; and nothing at all while no controller runs (the lease bounds that). A run can therefore exceed its limit by what it
//! writes in one interval.

use super::stop::groups_of;
use super::{Run, Runs};
use crate::api::agent::Driver;
use crate::api::names::{Attempt, Role};
use crate::inside::wire::{FILE_LIMIT, FILE_SESSION, FILE_SPEC, FOLDER_OUT, LimitReport};
use crate::inside::{limits, system};
use crate::plan::observed::Limit;
use crate::sandbox::folder::{RunFolder, Session, StoredSpec};
use crate::sandbox::kill::{self, Life};
use crate::sandbox::{RunSpec, cgroup};
use k8s_openapi::jiff::Timestamp;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, Weak};
use std::time::{Duration, Instant};

/// Pause between two rounds.
const ROUND_PAUSE: Duration = Duration::from_millis(250);
/// A look at a run is followed by a pause of so many times its own length.
const LOOK_SHARE: u32 = 10;
/// Longest pause between two looks at a run.
const LOOK_PAUSE_MAX: Duration = Duration::from_secs(15);
/// One inode is allowed for so many bytes of disk,
const BYTES_PER_INODE: u64 = 16 * 1024;
/// but never fewer than this.
const INODES_MIN: u64 = 10_000;
/// Deepest folder that is measured: the descriptors of all folders above stay open meanwhile.
const DEPTH_MAX: usize = 128;
/// Open descriptors of a run that one look follows.
const DESCRIPTORS_MAX: usize = 64 * 1024;
/// Refused processes that are no accident any more: a build that forks too wide gives up long before.
const PIDS_REFUSED_MAX: u64 = 10_000;
/// Where nobody counts refusals: how long it may have all that it may, in each of so many looks. A build that is so wide goes down in between.
const FULL_TIME_MAX: Duration = Duration::from_secs(5);
const FULL_LOOKS_MIN: u32 = 3;
/// How long an attempt that begins over its limit may stay so,
const GRACE: Duration = Duration::from_secs(60);
/// by how much it may grow meanwhile, as a part of the limit (its tools write before it can remove anything),
const GRACE_SHARE: u64 = 20;
/// and how many times the limit is too far for that.
const GRACE_TIMES_MAX: u64 = 2;
/// An end that nobody has looked at for so many rounds is told again.
const GONE_ROUNDS: u32 = 4;
/// A block as `stat` counts it.
const BLOCK_BYTES: u64 = 512;

/// What is watched of a run; stored with it, so that the next controller goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WatchSpec {
    /// Folders on the disk that the agent fills.
    pub folders: Vec<PathBuf>,
    /// Most bytes in all of them together; 0: not watched.
    pub disk_bytes_max: u64,
    /// Most inodes in all of them together.
    pub inodes_max: u64,
    /// What an earlier attempt left in them.
    pub begun: Used,
    /// Most memory that its processes may have together; 0: the kernel holds that.
    pub memory_bytes_max: u64,
    /// Processes that it may have, for the sentence.
    pub pids_max: u32,
}

impl WatchSpec {
    /// What is watched of a run.
    #[must_use]
    pub fn of(spec: &RunSpec, folder: &RunFolder, memory: bool) -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // In the merged view of an overlay the shared checkout would count as well.
        let mut folders = vec![upper_of(&mounts, &spec.tree).unwrap_or_else(|| spec.tree.clone())];
        folders.extend(spec.home.clone());
        folders.push(folder.path().join(FOLDER_OUT));
        let disk_bytes_max = spec.limits.disk_bytes;
        let inodes_max = (disk_bytes_max / BYTES_PER_INODE).max(INODES_MIN);
        let memory_bytes_max = if memory { spec.limits.memory_bytes } else { 0 };
        let pids_max = spec.limits.pids_max;
        let mut watched = Self { folders, disk_bytes_max, inodes_max, begun: Used::default(), memory_bytes_max, pids_max };
        if spec.run.attempt > Attempt(1) && spec.run.role == Role::Agent {
            watched.begun = watched.left_behind();
        }
        watched
    }

    /// What is in the folders before the start; nothing if that is too much for any grace, or cannot be measured.
    fn left_behind(&self) -> Used {
        let far = Bounds { bytes_max: GRACE_TIMES_MAX * self.disk_bytes_max, inodes_max: GRACE_TIMES_MAX * self.inodes_max, depth: false };
        let mut meter = Meter { used: Used::default(), bounds: far, counted: BTreeSet::new(), devices: BTreeSet::new() };
        let walked = self.folders.iter().try_for_each(|folder| meter.walk(folder));
        if walked.is_err() || meter.is_over() { Used::default() } else { meter.used }
    }

    /// What may be there after so much time.
    fn bounds(&self, running: Duration) -> Bounds {
        let Self { disk_bytes_max, inodes_max, begun, .. } = *self;
        let raised = |begun: u64, max: u64| if begun > max { begun + max / GRACE_SHARE } else { max };
        if running >= GRACE {
            Bounds { bytes_max: disk_bytes_max, inodes_max, depth: true }
        } else {
            Bounds { bytes_max: raised(begun.bytes, disk_bytes_max), inodes_max: raised(begun.inodes, inodes_max), depth: !begun.too_deep }
        }
    }
}

/// What may be there now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    bytes_max: u64,
    inodes_max: u64,
    /// Whether folders may not be nested deeper than is measured.
    depth: bool,
}

/// The upper folder of the overlay that is mounted at this very place.
fn upper_of(mounts: &str, tree: &Path) -> Option<PathBuf> {
    let line = mounts.lines().rev().find(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(&unescape(point)) == tree))?;
    let (_, right) = line.split_once(" - ")?;
    let options = right.strip_prefix("overlay ")?.split(' ').nth(1)?;
    options.split(',').find_map(|option| option.strip_prefix("upperdir=")).map(|path| PathBuf::from(unescape(path)))
}

/// Undoes the octal escapes of `/proc/self/mountinfo`.
fn unescape(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"].iter().fold(text.to_owned(), |text, pair| text.replace(&pair[..4], &pair[4..]))
}

/// When a run is looked at again, and what was stored of it.
#[derive(Default)]
pub(crate) struct Watch {
    spec: Option<Arc<StoredSpec>>,
    next: Option<Instant>,
    last: Option<(Instant, Used)>,
    /// A limit was exceeded, but the end was not seen yet.
    exceeded: bool,
    /// Rounds in which everything of the run was gone.
    gone: u32,
    /// Since when, and in how many looks, it had as many processes and threads as it may.
    full: Option<(Instant, u32)>,
}

/// Starts the thread; it ends with the driver.
pub(crate) fn start(runs: &Arc<Runs>) -> io::Result<()> {
    let runs: Weak<Runs> = Arc::downgrade(runs);
    let work = move || {
        while let Some(runs) = runs.upgrade() {
            runs.watch_all();
            drop(runs);
            std::thread::sleep(ROUND_PAUSE);
        }
    };
    std::thread::Builder::new().name("mosaic-limits".to_owned()).spawn(work).map(drop)
}

impl Runs {
    fn watch_all(&self) {
        let runs: Vec<Arc<Run>> = self.known().values().cloned().collect();
        for run in runs.into_iter().filter(|run| run.ended.get().is_none()) {
            if run.has_news() {
                self.link.tell(&run.id.uid);
            }
            if let Err(e) = self.watch(&run) {
                tracing::debug!(run = %run.id, error = %e, "could not look at the limits; tried again");
            }
        }
    }

    fn watch(&self, run: &Run) -> io::Result<()> {
        let mut watch = run.watch.lock().unwrap_or_else(PoisonError::into_inner);
        self.tell_late_end(run, &mut watch)?;
        if watch.exceeded {
            return self.end_for_limit(run);
        }
        // Its files are on another host, where the kubelet looks at them.
        if run.driver == Driver::Pod {
            return Ok(());
        }
        let Some(spec) = stored(run, &mut watch)? else { return Ok(()) };
        let groups = groups_of(run)?;
        let exceeded = refused_too_often(&groups, &spec).or_else(|| exceeded_without_groups(run, &spec, &mut watch));
        let exceeded = match exceeded {
            None if watch.next.is_none_or(|next| Instant::now() >= next) => {
                let started = Instant::now();
                let bounds = spec.watch.bounds(running_for(run)?);
                let used = measure(run, &spec, &groups, bounds)?;
                let took = started.elapsed();
                let before = watch.last.replace((started, used));
                let left = before.and_then(|(at, before)| used.time_left(&before, started - at, bounds));
                let usual = (took * LOOK_SHARE).min(LOOK_PAUSE_MAX);
                watch.next = Some(Instant::now() + left.map_or(usual, |left| usual.min(left / 2).max(took)));
                used.exceeds(bounds).map(|limit| (limit, used.sentence(limit, &spec.watch)))
            }
            other => other,
        };
        let Some((limit, message)) = exceeded else { return Ok(()) };
        run.folder.write(FILE_LIMIT, &LimitReport { limit: limit.as_str().to_owned(), message })?;
        watch.exceeded = true;
        self.end_for_limit(run)
    }

    /// What init told of its end may have been looked at before its launcher had written the last word, or init was killed and told
    /// nothing: without another word nobody would look again for minutes.
    fn tell_late_end(&self, run: &Run, watch: &mut Watch) -> io::Result<()> {
        let Some(identity) = run.identity()? else { return Ok(()) };
        if watch.gone <= GONE_ROUNDS && kill::look(&identity)? != Life::Alive && !run.folder.is_held()? {
            watch.gone += 1;
            if watch.gone == GONE_ROUNDS {
                self.link.tell(&run.id.uid);
            }
        }
        Ok(())
    }

    fn end_for_limit(&self, run: &Run) -> io::Result<()> {
        self.link.say_stop(&run.id);
        match self.kill_until(run, Instant::now() + self.config.stop_timeout)? {
            None => Ok(()),
            Some(why) => Err(io::Error::other(why)),
        }
    }
}

/// What is stored of a granted run; `None` before.
fn stored(run: &Run, watch: &mut Watch) -> io::Result<Option<Arc<StoredSpec>>> {
    if watch.spec.is_none() && run.folder.read::<Session>(FILE_SESSION)?.is_some() {
        watch.spec = run.folder.read::<StoredSpec>(FILE_SPEC)?.map(Arc::new);
    }
    Ok(watch.spec.clone())
}

/// Since its grant, by the wall clock: the grace goes on when the controller starts anew.
fn running_for(run: &Run) -> io::Result<Duration> {
    let granted_at = run.session()?.map_or(0, |session| session.granted_at_millis);
    Ok(Duration::from_millis(u64::try_from(Timestamp::now().as_millisecond() - granted_at).unwrap_or(0)))
}

fn refused_too_often(groups: &[PathBuf], spec: &StoredSpec) -> Option<(Limit, String)> {
    let refused = limits::count(groups).pids_refused;
    (refused > PIDS_REFUSED_MAX).then(|| (Limit::Pids, pids_message(spec.watch.pids_max, refused)))
}

/// Memory and processes where no control group holds them: what init and its descendants have.
fn exceeded_without_groups(run: &Run, spec: &StoredSpec, watch: &mut Watch) -> Option<(Limit, String)> {
    if spec.watch.memory_bytes_max == 0 {
        return None;
    }
    let pids = processes_of(run);
    let used: u64 = pids.iter().copied().map(memory_of).sum();
    if used > spec.watch.memory_bytes_max {
        return Some((Limit::Memory, format!("its processes had {used} bytes of memory, and may have {}", spec.watch.memory_bytes_max)));
    }
    let most = spec.launch.limits.processes_max?;
    // Init is not one of its own.
    let has = pids.into_iter().map(threads_of).sum::<u64>().saturating_sub(1);
    if has < most.saturating_sub(1) {
        watch.full = None;
        return None;
    }
    let (since, looks) = watch.full.get_or_insert((Instant::now(), 0));
    *looks += 1;
    let seconds = since.elapsed().as_secs();
    (since.elapsed() >= FULL_TIME_MAX && *looks >= FULL_LOOKS_MIN)
        .then(|| (Limit::Pids, format!("for {seconds} s it had {has} processes and threads, as many as it may ({most} with its init)")))
}

/// Processes of a run that is in no control group: init and everything below it.
fn processes_of(run: &Run) -> BTreeSet<i32> {
    run.identity().ok().flatten().map(|identity| descendants(identity.pid)).unwrap_or_default().into_iter().collect()
}

/// A process and everything below it. In a pid namespace nothing is lost from sight: orphans become children of its PID 1.
fn descendants(pid: i32) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Ok(Some(parent)) = system::parent_of(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = vec![pid];
    let mut next = 0;
    while let Some(pid) = found.get(next) {
        found.extend(children.remove(pid).unwrap_or_default());
        next += 1;
    }
    found
}

/// Anonymous, shared and swapped memory of a process, in bytes; nothing when it is gone. Pages of files are the host's cache.
fn memory_of(pid: i32) -> u64 {
    let status = system::read_small(format!("/proc/{pid}/status")).unwrap_or_default();
    let kibibytes = |line: &str| line.split_whitespace().nth(1).and_then(|number| number.parse::<u64>().ok()).unwrap_or(0);
    let counted = status.lines().filter(|line| ["RssAnon:", "RssShmem:", "VmSwap:"].iter().any(|name| line.starts_with(name)));
    counted.map(kibibytes).sum::<u64>() * 1024
}

/// Threads of a process; none when it is gone.
fn threads_of(pid: i32) -> u64 {
    let status = system::read_small(format!("/proc/{pid}/status")).unwrap_or_default();
    let count = status.lines().find_map(|line| line.strip_prefix("Threads:"));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// The sentence on processes.
pub(crate) fn pids_message(pids_max: u32, refused: u64) -> String {
    format!("it had {pids_max} processes and threads, and was refused another one {refused} times")
}

/// What a run has on the disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Used {
    /// Allocated bytes.
    pub bytes: u64,
    /// Files, folders and links.
    pub inodes: u64,
    /// Whether folders are nested deeper than is measured.
    pub too_deep: bool,
}

impl Used {
    /// How long it takes until a limit is reached, if it goes on as since an earlier look; `None` when nothing grows.
    fn time_left(&self, before: &Self, since: Duration, bounds: Bounds) -> Option<Duration> {
        let left = |now: u64, before: u64, max: u64| {
            let grown = now.checked_sub(before).filter(|grown| *grown > 0)?;
            let parts = max.saturating_sub(now).div_ceil(grown);
            Some(since.saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX)))
        };
        let bytes = left(self.bytes, before.bytes, bounds.bytes_max);
        let inodes = left(self.inodes, before.inodes, bounds.inodes_max);
        bytes.into_iter().chain(inodes).min()
    }

    fn exceeds(&self, bounds: Bounds) -> Option<Limit> {
        if bounds.bytes_max == 0 {
            None
        } else if self.bytes > bounds.bytes_max {
            Some(Limit::Disk)
        } else {
            (self.inodes > bounds.inodes_max || (self.too_deep && bounds.depth)).then_some(Limit::Inodes)
        }
    }

    fn sentence(&self, limit: Limit, spec: &WatchSpec) -> String {
        let Self { bytes, inodes, .. } = self;
        let what = if limit == Limit::Disk {
            format!("its files have {bytes} bytes on the disk, and it may have {}", spec.disk_bytes_max)
        } else if *inodes > spec.inodes_max {
            format!("it has {inodes} files and folders or more, and may have {}", spec.inodes_max)
        } else {
            format!("its folders are nested deeper than {DEPTH_MAX}, where nothing is measured")
        };
        format!("{what}; an attempt that begins so has {} s to remove what is too much", GRACE.as_secs())
    }
}

/// Opens a folder. One that its owner has closed to himself is opened first: nothing may hide there from an ordinary user's controller.
fn open_closed(folder: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    match rustix::fs::openat(folder, name, flags, Mode::empty()) {
        Err(rustix::io::Errno::ACCESS) => {
            // By descriptor: the name may be a link to anywhere by now.
            let held = rustix::fs::openat(folder, name, OFlags::PATH | flags, Mode::empty())?;
            rustix::fs::chmod(format!("/proc/self/fd/{}", held.as_raw_fd()), Mode::RWXU)?;
            rustix::fs::openat(folder, name, flags, Mode::empty())
        }
        other => other,
    }
}

/// A measurement that goes on until something is exceeded.
struct Meter {
    used: Used,
    bounds: Bounds,
    /// Inodes with several names, and open ones without any: each counts once.
    counted: BTreeSet<(u64, u64)>,
    devices: BTreeSet<u64>,
}

fn measure(run: &Run, spec: &StoredSpec, groups: &[PathBuf], bounds: Bounds) -> io::Result<Used> {
    let mut meter = Meter { used: Used::default(), bounds, counted: BTreeSet::new(), devices: BTreeSet::new() };
    if let Ok(found) = std::fs::metadata(&spec.launch.tree) {
        meter.devices.insert(found.dev());
    }
    for folder in &spec.watch.folders {
        meter.walk(folder)?;
    }
    if !meter.is_over() {
        let pids = if groups.is_empty() { processes_of(run) } else { cgroup::members(groups)? };
        meter.look_at_open_files(&pids);
    }
    Ok(meter.used)
}

impl Meter {
    fn is_over(&self) -> bool {
        self.used.exceeds(self.bounds).is_some()
    }

    fn add(&mut self, found: &Stat) {
        // The types differ between machines.
        #[allow(clippy::unnecessary_cast, clippy::useless_conversion)]
        let (device, inode, names, blocks) = (found.st_dev as u64, found.st_ino as u64, u64::from(found.st_nlink), found.st_blocks as u64);
        let is_folder = FileType::from_raw_mode(found.st_mode) == FileType::Directory;
        if !is_folder && names != 1 && !self.counted.insert((device, inode)) {
            return;
        }
        self.used.inodes += 1;
        self.used.bytes += blocks * BLOCK_BYTES;
    }

    /// Walks a folder that changes meanwhile, through no link and onto no other file system.
    fn walk(&mut self, top: &Path) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let top: OwnedFd = match rustix::fs::open(top, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            other => other?,
        };
        let device = rustix::fs::fstat(&top)?.st_dev;
        self.devices.insert(device);
        let mut above = vec![Dir::new(top)?];
        while let Some(dir) = above.last_mut() {
            let Some(entry) = dir.next() else {
                above.pop();
                continue;
            };
            let name: CString = entry?.file_name().to_owned();
            if matches!(name.as_bytes(), b"." | b"..") {
                continue;
            }
            let here = dir.fd()?;
            // What goes while we look is no longer there.
            let Ok(found) = rustix::fs::statat(here, &name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let inner = (FileType::from_raw_mode(found.st_mode) == FileType::Directory && found.st_dev == device)
                .then(|| open_closed(here, &name, flags).and_then(Dir::new));
            self.add(&found);
            if let Some(Ok(inner)) = inner {
                self.used.too_deep |= above.len() >= DEPTH_MAX;
                above.push(inner);
            }
            if self.is_over() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Counts files of our file systems that have no name any more, but are open.
    fn look_at_open_files(&mut self, pids: &BTreeSet<i32>) {
        let mut left = DESCRIPTORS_MAX;
        for pid in pids {
            let folder = PathBuf::from(format!("/proc/{pid}/fd"));
            for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
                left = left.saturating_sub(1);
                let Ok(found) = rustix::fs::stat(entry.path()) else { continue };
                let is_file = FileType::from_raw_mode(found.st_mode) == FileType::RegularFile;
                if is_file && found.st_nlink == 0 && self.devices.contains(&found.st_dev) {
                    self.add(&found);
                }
                if left == 0 || self.is_over() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upper_folder_is_the_one_of_the_mount_at_the_tree() {
        let line =
            |point: &str, upper: &str| format!("47 27 0:41 / {point} rw - overlay mosaic rw,lowerdir=/l,upperdir={upper},workdir=/w\n");
        let mounts = line("/s/a", "/u/a") + &line("/s/a\\040b", "/u/b\\040c") + "48 27 0:4 / /s/c rw - tmpfs tmpfs rw\n";
        let upper = |tree: &str| upper_of(&mounts, Path::new(tree));
        assert_eq!(upper("/s/a"), Some("/u/a".into()));
        assert_eq!(upper("/s/a b"), Some("/u/b c".into()));
        assert_eq!((upper("/s/c"), upper("/s"), upper("/u/a")), (None, None, None));
    }

    #[test]
    fn what_grows_fast_is_looked_at_sooner() {
        let bounds = Bounds { bytes_max: 1000, inodes_max: 100, depth: true };
        let used = |bytes, inodes| Used { bytes, inodes, too_deep: false };
        let left = |before: Used, now: Used| now.time_left(&before, Duration::from_secs(2), bounds);
        assert_eq!(left(used(400, 10), used(500, 10)), Some(Duration::from_secs(10)));
        assert_eq!(left(used(400, 10), used(500, 60)), Some(Duration::from_secs(2)));
        assert_eq!((left(used(400, 10), used(300, 10)), left(used(400, 10), used(400, 10))), (None, None));
        assert_eq!(left(used(400, 10), used(2000, 10)), Some(Duration::ZERO));
    }

    #[test]
    fn who_begins_over_the_limit_has_a_grace_in_which_it_may_hardly_grow() {
        let begun = |bytes, inodes, too_deep| WatchSpec {
            disk_bytes_max: 1000,
            inodes_max: 100,
            begun: Used { bytes, inodes, too_deep },
            ..WatchSpec::default()
        };
        let (early, late) = (Duration::from_secs(59), Duration::from_secs(60));
        let usual = Bounds { bytes_max: 1000, inodes_max: 100, depth: true };
        assert_eq!(begun(1000, 100, false).bounds(early), usual);
        assert_eq!(begun(1200, 10, false).bounds(early), Bounds { bytes_max: 1250, ..usual });
        assert_eq!(begun(10, 150, true).bounds(early), Bounds { inodes_max: 155, depth: false, ..usual });
        assert_eq!(begun(1200, 150, true).bounds(late), usual);
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("file"), vec![1; 1 << 20]).unwrap();
        let left = |disk_bytes_max| {
            let folders = vec![top.path().to_owned(), top.path().join("absent")];
            WatchSpec { folders, disk_bytes_max, inodes_max: 100, ..WatchSpec::default() }.left_behind()
        };
        assert!(left(1 << 20).bytes >= 1 << 20);
        assert_eq!(left(1 << 18), Used::default(), "far over the limit");
    }

    #[test]
    fn allocated_blocks_count_once_and_holes_do_not() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("file");
        std::fs::write(&file, vec![1; 1 << 20]).unwrap();
        for n in 0..10 {
            std::fs::hard_link(&file, top.path().join(format!("name-{n}"))).unwrap();
        }
        std::fs::File::create(top.path().join("sparse")).unwrap().set_len(1 << 40).unwrap();
        std::os::unix::fs::symlink("/", top.path().join("link")).unwrap();
        let bounds = Bounds { bytes_max: 1 << 30, inodes_max: 1000, depth: true };
        let mut meter = Meter { used: Used::default(), bounds, counted: BTreeSet::new(), devices: BTreeSet::new() };
        meter.walk(top.path()).unwrap();
        assert_eq!(meter.used.inodes, 3);
        assert!((1 << 20..(1 << 20) + 16_384).contains(&meter.used.bytes), "{:?}", meter.used);
    }
}
