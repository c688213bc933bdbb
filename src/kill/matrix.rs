//! What a kill can do and see depends on where Mosaic runs: mode x path x can it look. The one table, for code, `mosaic doctor` and documents.

use crate::inside::system;

/// The inode of the first pid namespace of every Linux (`PROC_PID_INIT_INO`): who is in it sees every process of the host.
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// Where Mosaic runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// On the host, as root; also in a container with the host's processes and CAP_KILL.
    HostRoot,
    /// On the host, as an ordinary user.
    HostUser,
    /// In a container with processes of its own.
    Container,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Self; 3] = [Self::HostRoot, Self::HostUser, Self::Container];

    /// Where this program runs.
    #[must_use]
    pub fn here() -> Self {
        let own = system::namespace_of("self", "pid").unwrap_or_default();
        match (own == FIRST_PID_NAMESPACE, rustix::process::geteuid().is_root()) {
            (true, true) => Self::HostRoot,
            (true, false) => Self::HostUser,
            (false, _) => Self::Container,
        }
    }

    /// Its name, for people.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::HostRoot => "on the host as root",
            Self::HostUser => "on the host as an ordinary user",
            Self::Container => "in a container",
        }
    }
}

/// One path by which a sandbox is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// SIGKILL to PID 1 of the sandbox through a handle; the kernel ends its namespace with it.
    Process,
    /// The control group's own kill (version 2), and letting a frozen one run again (version 1).
    Groups,
    /// The word to stop over the link: init ends everything by itself.
    Link,
    /// The container engine's API.
    Engine,
    /// No renewal of the lease: init ends everything by itself, even if nobody ever comes back.
    Lease,
}

impl Path {
    /// Every path, in the order in which they are tried; all are begun at once but the last, which needs nobody.
    pub const ALL: [Self; 5] = [Self::Process, Self::Groups, Self::Link, Self::Engine, Self::Lease];

    /// Its name.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Groups => "control groups",
            Self::Link => "link",
            Self::Engine => "engine",
            Self::Lease => "lease",
        }
    }
}

/// What a path can do in a mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Whether it ends process sandboxes.
    pub processes: bool,
    /// Whether it ends containers.
    pub containers: bool,
    /// Whether the end can be looked at by the same way; else the receipt waits for another's look, or says `revoked-unverified`.
    pub can_look: bool,
}

/// What a path can do in a mode.
#[must_use]
pub fn reach(mode: Mode, path: Path) -> Reach {
    let all = Reach { processes: true, containers: true, can_look: true };
    match (mode, path) {
        (Mode::HostRoot, Path::Process) => all,
        // An ordinary user's containers have that user's id as well.
        (Mode::HostUser, Path::Process) => all,
        // Containers are made beside ours: their processes are not among those that we see.
        (Mode::Container, Path::Process) => Reach { containers: false, ..all },
        (Mode::HostRoot, Path::Groups) => Reach { can_look: false, ..all },
        (Mode::HostUser | Mode::Container, Path::Groups) => Reach { containers: false, can_look: false, ..all },
        (_, Path::Link | Path::Lease) => Reach { can_look: false, ..all },
        (_, Path::Engine) => Reach { processes: false, ..all },
    }
}

/// What a path can do in a mode, in words.
#[must_use]
pub fn words(reach: Reach) -> String {
    let what = match (reach.processes, reach.containers) {
        (true, true) => "processes and containers",
        (true, false) => "processes",
        (false, true) => "containers",
        (false, false) => "nothing",
    };
    format!("ends {what}{}", if reach.can_look { ", and looks" } else { "" })
}
