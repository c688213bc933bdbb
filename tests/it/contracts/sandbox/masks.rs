//! A host without one of the primitives: each is masked in turn, by a filter that refuses its call, or only pretends that it succeeded.
//! The driver must refuse to open, name the primitive and say what helps; where the operator allows that it is missing, it starts without.

use super::Subject;
use super::process::{Host, ids};
use mosaic::inside::confine::{Need, PRIMITIVES};
use mosaic::inside::seccomp::{self, Condition, Rule};
use mosaic::plan::observed::EndCause;
use mosaic::sandbox::{Drivers, SANDBOX_UID, SandboxConfig, SandboxIds};
use mosaic::sandbox::{Sandbox, SandboxError};

struct Mask {
    primitive: &'static str,
    rules: &'static [Rule],
    /// In the refusal.
    words: &'static [&'static str],
}

const fn when(argument: u32, mask: u32, values: &'static [u32], is_one: bool) -> Condition {
    Condition { argument, mask, is_one, values }
}

macro_rules! cloning {
    ($flag:expr, $errno:expr) => {
        // A filter cannot see the flags of clone3; who wants to refuse some says that there is no such call, as engines do.
        &[
            Rule { call: libc::SYS_clone, errno: $errno, when: &[when(0, $flag as u32, &[0], false)] },
            Rule { call: libc::SYS_clone3, errno: libc::ENOSYS, when: &[] },
        ]
    };
}

macro_rules! always {
    ($call:expr, $errno:expr) => {
        &[Rule { call: $call, errno: $errno, when: &[] }]
    };
}

macro_rules! first_argument {
    ($call:expr, $value:expr, $errno:expr) => {
        &[Rule { call: $call, errno: $errno, when: &[when(0, u32::MAX, &[$value as u32], true)] }]
    };
}

const MASKS: &[Mask] = &[
    Mask {
        primitive: "user-namespace",
        rules: first_argument!(libc::SYS_unshare, libc::CLONE_NEWUSER, libc::EPERM),
        words: &["user namespace", "user.max_user_namespaces", "kernel.unprivileged_userns_clone", "apparmor"],
    },
    Mask {
        primitive: "user-namespace",
        rules: first_argument!(libc::SYS_unshare, libc::CLONE_NEWUSER, libc::ENOSYS),
        words: &["user namespace"],
    },
    Mask { primitive: "pid-namespace", rules: cloning!(libc::CLONE_NEWPID, libc::EPERM), words: &["pid-namespace", "--privileged"] },
    Mask { primitive: "mount-namespace", rules: cloning!(libc::CLONE_NEWNS, libc::EPERM), words: &["mount-namespace", "CAP_SYS_ADMIN"] },
    Mask { primitive: "network-namespace", rules: cloning!(libc::CLONE_NEWNET, libc::ENOSPC), words: &["network-namespace", "user.max_"] },
    Mask { primitive: "ipc-namespace", rules: cloning!(libc::CLONE_NEWIPC, libc::EINVAL), words: &["ipc-namespace", "CONFIG_NAMESPACES"] },
    Mask { primitive: "uts-namespace", rules: cloning!(libc::CLONE_NEWUTS, libc::EPERM), words: &["uts-namespace", "seccomp profile"] },
    Mask { primitive: "seccomp", rules: always!(libc::SYS_seccomp, libc::ENOSYS), words: &["seccomp", "CONFIG_SECCOMP_FILTER"] },
    Mask { primitive: "seccomp", rules: always!(libc::SYS_seccomp, 0), words: &["seccomp", "CONFIG_SECCOMP_FILTER"] },
    Mask {
        primitive: "landlock",
        rules: always!(libc::SYS_landlock_create_ruleset, libc::ENOSYS),
        words: &["landlock", "lsm=", "Linux 5.19", "no Landlock"],
    },
    Mask { primitive: "landlock", rules: always!(libc::SYS_landlock_create_ruleset, libc::EOPNOTSUPP), words: &["landlock", "lsm="] },
    Mask { primitive: "landlock", rules: always!(libc::SYS_landlock_restrict_self, 0), words: &["landlock", "lsm="] },
    Mask { primitive: "unprivileged-uid", rules: always!(libc::SYS_setresuid, libc::EPERM), words: &["failed to become user"] },
    Mask { primitive: "unprivileged-uid", rules: always!(libc::SYS_setresuid, 0), words: &["unprivileged-uid", "seccomp profile"] },
    Mask { primitive: "no-capabilities", rules: always!(libc::SYS_capset, libc::EPERM), words: &["failed to drop capabilities"] },
    Mask { primitive: "no-capabilities", rules: always!(libc::SYS_capset, 0), words: &["no-capabilities", "seccomp profile"] },
    Mask {
        primitive: "no-new-privileges",
        rules: first_argument!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, libc::EINVAL),
        words: &["failed to refuse new privileges"],
    },
    Mask {
        primitive: "no-new-privileges",
        rules: first_argument!(libc::SYS_prctl, libc::PR_SET_NO_NEW_PRIVS, 0),
        words: &["no-new-privileges", "seccomp profile"],
    },
    Mask {
        primitive: "init-not-dumpable",
        rules: first_argument!(libc::SYS_prctl, libc::PR_SET_DUMPABLE, libc::EINVAL),
        words: &["failed to hide memory"],
    },
    Mask {
        primitive: "no-core-dumps",
        rules: &[Rule {
            call: libc::SYS_prlimit64,
            errno: 0,
            when: &[when(1, u32::MAX, &[libc::RLIMIT_CORE], true), when(2, u32::MAX, &[0], false)],
        }],
        words: &["no-core-dumps"],
    },
];

/// Those that no refused call takes away, and why.
const UNMASKED: [(&str, &str); 2] = [
    ("init-untouchable", "it follows from the namespaces, the mounts and init-not-dumpable"),
    ("no-nested-namespaces", "it is a write to a file of /proc; without it the filter refuses new namespaces all the same"),
];

/// Opens the driver on a thread of its own behind a filter; the launcher inherits it.
fn open_behind(rules: &'static [Rule], config: SandboxConfig) -> Result<Drivers, SandboxError> {
    let opened = std::thread::spawn(move || {
        if ids().unprivileged {
            rustix::thread::set_no_new_privs(true).unwrap();
        }
        seccomp::install(&seccomp::compile(rules)).unwrap();
        Drivers::process(config)
    });
    opened.join().unwrap()
}

#[test]
fn each_primitive_masked_refuses_the_start_with_its_reason() {
    // An ordinary user is one already, and can have a filter only once new privileges are refused.
    let given = |mask: &&Mask| ids().unprivileged && ["unprivileged-uid", "no-new-privileges"].contains(&mask.primitive);
    for Mask { primitive, rules, words } in MASKS.iter().filter(|mask| !given(mask)) {
        let refused = open_behind(rules, Host::new().config());
        let Err(SandboxError::Unsupported(text)) = refused else { panic!("{primitive}: {:?}", refused.err()) };
        for word in *words {
            assert!(text.contains(word), "{primitive}: {word:?} is not in {text:?}");
        }
    }
}

#[test]
fn every_required_primitive_has_a_mask() {
    for primitive in PRIMITIVES.iter().filter(|primitive| !matches!(primitive.process, Need::WherePossible | Need::Never)) {
        let masked = MASKS.iter().any(|mask| mask.primitive == primitive.name);
        let excused = UNMASKED.iter().any(|(name, _)| *name == primitive.name);
        assert!(masked != excused, "{}", primitive.name);
        assert!(!primitive.help.is_empty(), "{} has no help", primitive.name);
    }
}

#[test]
fn what_the_operator_allows_may_be_missing_and_is_not_shown() {
    for Mask { primitive, rules, .. } in MASKS {
        let need = PRIMITIVES.iter().find(|found| found.name == *primitive).unwrap().process;
        let host = Host::new();
        let config = SandboxConfig { allow_missing: vec![(*primitive).to_owned()], ..host.config() };
        // All on one thread and what it starts, so that every launcher is behind the filter.
        let outcome = std::thread::spawn(move || {
            seccomp::install(&seccomp::compile(rules)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let sandbox = Drivers::process(config)?;
            let subject = Subject { sandbox: &sandbox, trees: host.state.path(), owner: SandboxIds::of(SANDBOX_UID) };
            let end = runtime.block_on(subject.run(subject.script("allowed-01", 1, "exit 4")));
            Ok::<_, SandboxError>((end, runtime.block_on(sandbox.observe(None))?.remove(0).isolation))
        });
        match (need, outcome.join().unwrap()) {
            (Need::Never, _) => panic!("{primitive}: this driver has it"),
            (Need::Always, refused) => assert!(matches!(refused, Err(SandboxError::Unsupported(_))), "{primitive}: {refused:?}"),
            (Need::UnlessAllowed | Need::WherePossible, Err(e)) => panic!("{primitive}: {e}"),
            (Need::UnlessAllowed | Need::WherePossible, Ok((end, isolation))) => {
                assert_eq!(end.cause, EndCause::Exited(4), "{primitive}: {}", end.output_tail);
                assert!(!isolation.iter().any(|name| name == primitive), "{primitive} is shown: {isolation:?}");
            }
        }
    }
}
