//! The filter of system calls that the agent and all its descendants run behind, written as a table and compiled here to classic BPF.
//!
//! Another architecture's calls (32-bit programs) end the process; x32 calls and calls newer than `CALL_MAX` do not exist, so that what a
//! later kernel adds is not open by accident. `DENIED` never succeeds, whatever its arguments; `RULES` depend on arguments. Conditions
//! look at the low 32 bits, which is all that the kernel reads of these arguments. It knows nothing about paths: that is `landlock`.

use libc::{c_long, sock_filter};
use std::io;

/// Denies a call when all its conditions hold.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Number of the call.
    pub call: c_long,
    /// What the caller gets; 0 pretends success.
    pub errno: i32,
    /// No condition: always.
    pub when: &'static [Condition],
}

/// One look at an argument.
#[derive(Debug, Clone, Copy)]
pub struct Condition {
    /// Which, from 0.
    pub argument: u32,
    /// Bits that count.
    pub mask: u32,
    /// Holds when those bits are one of `values` (true), or none of them (false).
    pub is_one: bool,
    /// Compared with the bits that count.
    pub values: &'static [u32],
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xC000_00B7;
/// The newest call that was looked at for these tables (removexattrat). x32 calls are above it as well.
const CALL_MAX: u32 = 466;
const ALL_BITS: u32 = u32::MAX;
/// Offsets in `struct seccomp_data`; both architectures are little-endian.
const AT_CALL: u32 = 0;
const AT_ARCHITECTURE: u32 = 4;
const AT_ARGUMENTS: u32 = 16;
const SET_MODE_FILTER: libc::c_uint = 1;

/// Calls that are denied whatever their arguments (`EPERM`).
pub const DENIED: &[c_long] = &[
    // Other processes' memory and descriptors.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_process_mrelease,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    libc::SYS_move_pages,
    libc::SYS_migrate_pages,
    // Keys belong to users, not to namespaces.
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    // Namespaces, mounts and roots.
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    // Files without a path.
    libc::SYS_open_by_handle_at,
    libc::SYS_name_to_handle_at,
    libc::SYS_fanotify_init,
    // Large doors into the kernel that no build needs.
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_lookup_dcookie,
    libc::SYS_nfsservctl,
    // The machine.
    libc::SYS_kexec_load,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_reboot,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_syslog,
    libc::SYS_vhangup,
];

/// Those of one architecture.
#[cfg(target_arch = "x86_64")]
pub const DENIED_HERE: &[c_long] = &[
    libc::SYS_kexec_file_load,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_uselib,
    libc::SYS__sysctl,
    libc::SYS_sysfs,
    libc::SYS_ustat,
];
/// Those of one architecture.
#[cfg(target_arch = "aarch64")]
pub const DENIED_HERE: &[c_long] = &[libc::SYS_kexec_file_load];

/// Makes memory that no process shows as its own: refused where only processes are looked at (`ENOSYS`; libraries then use files in
/// `/dev/shm`, whose size is bounded).
pub const UNSEEN_MEMORY: &[c_long] = &[libc::SYS_memfd_create, libc::SYS_memfd_secret, libc::SYS_shmget];

const fn is_one_of(argument: u32, mask: u32, values: &'static [u32]) -> Condition {
    Condition { argument, mask, is_one: true, values }
}

const fn is_none_of(argument: u32, mask: u32, values: &'static [u32]) -> Condition {
    Condition { argument, mask, is_one: false, values }
}

#[allow(clippy::cast_sign_loss, reason = "bit patterns and small positive constants")]
mod bits {
    //! Constants of libc as the filter compares them.
    pub const NEW_NAMESPACE: u32 = (libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP) as u32;
    /// netlink is for its routing part only, which `getifaddrs` reads: the namespace has one interface and nobody inside may change it.
    pub const FAMILIES: &[u32] = &[libc::AF_UNIX as u32, libc::AF_INET as u32, libc::AF_INET6 as u32, libc::AF_NETLINK as u32];
    pub const INTERNET: &[u32] = &[libc::AF_INET as u32, libc::AF_INET6 as u32];
    pub const NETLINK: &[u32] = &[libc::AF_NETLINK as u32];
    pub const UNIX: &[u32] = &[libc::AF_UNIX as u32];
    pub const ROUTE: &[u32] = &[libc::NETLINK_ROUTE as u32];
    pub const TYPE: u32 = 0xf;
    pub const TYPES: &[u32] = &[libc::SOCK_STREAM as u32, libc::SOCK_DGRAM as u32];
    /// Others load modules of the kernel when they are named.
    pub const PROTOCOLS: &[u32] =
        &[0, libc::IPPROTO_TCP as u32, libc::IPPROTO_UDP as u32, libc::IPPROTO_ICMP as u32, libc::IPPROTO_ICMPV6 as u32];
    /// Typing into a terminal, the console's own calls, redirecting it, line disciplines.
    pub const TERMINAL_CALLS: &[u32] = &[0x5412, 0x541C, 0x541D, 0x5423];
    pub const FILE_TYPE: u32 = libc::S_IFMT;
    pub const DEVICES: &[u32] = &[libc::S_IFCHR, libc::S_IFBLK];
    pub const WHITEOUT: u32 = libc::RENAME_WHITEOUT;
    /// init has the agent's uid, and these calls ask for no more: a limit on its processor time would end it.
    pub const INIT: &[u32] = &[1];
    pub const PRIORITY_PROCESS: &[u32] = &[libc::PRIO_PROCESS];
    pub const PRIORITY_USER: &[u32] = &[libc::PRIO_USER];
    pub const DISK_PRIORITY_PROCESS: &[u32] = &[1];
    pub const DISK_PRIORITY_USER: &[u32] = &[3];
    /// The default, and the question which one it is.
    pub const PERSONALITIES: &[u32] = &[0, u32::MAX];
}

/// Denies a call whose first argument is a process, where that is init.
const fn on_init(call: c_long) -> Rule {
    const NAMES_INIT: &[Condition] = &[is_one_of(0, ALL_BITS, bits::INIT)];
    Rule { call, errno: libc::EPERM, when: NAMES_INIT }
}

/// Calls that are denied by their arguments.
pub const RULES: &[Rule] = &[
    // The C library falls back to clone, whose flags can be looked at.
    Rule { call: libc::SYS_clone3, errno: libc::ENOSYS, when: &[] },
    Rule { call: libc::SYS_clone, errno: libc::EPERM, when: &[is_none_of(0, bits::NEW_NAMESPACE, &[0])] },
    Rule { call: libc::SYS_socket, errno: libc::EAFNOSUPPORT, when: &[is_none_of(0, ALL_BITS, bits::FAMILIES)] },
    Rule {
        call: libc::SYS_socket,
        errno: libc::EPERM,
        when: &[is_one_of(0, ALL_BITS, bits::INTERNET), is_none_of(1, bits::TYPE, bits::TYPES)],
    },
    Rule {
        call: libc::SYS_socket,
        errno: libc::EPROTONOSUPPORT,
        when: &[is_one_of(0, ALL_BITS, bits::INTERNET), is_none_of(2, ALL_BITS, bits::PROTOCOLS)],
    },
    Rule {
        call: libc::SYS_socket,
        errno: libc::EPROTONOSUPPORT,
        when: &[is_one_of(0, ALL_BITS, bits::NETLINK), is_none_of(2, ALL_BITS, bits::ROUTE)],
    },
    Rule { call: libc::SYS_socketpair, errno: libc::EAFNOSUPPORT, when: &[is_none_of(0, ALL_BITS, bits::UNIX)] },
    Rule { call: libc::SYS_ioctl, errno: libc::EPERM, when: &[is_one_of(1, ALL_BITS, bits::TERMINAL_CALLS)] },
    Rule { call: libc::SYS_personality, errno: libc::EPERM, when: &[is_none_of(0, ALL_BITS, bits::PERSONALITIES)] },
    Rule { call: libc::SYS_mknodat, errno: libc::EPERM, when: &[is_one_of(2, bits::FILE_TYPE, bits::DEVICES)] },
    #[cfg(target_arch = "x86_64")]
    Rule { call: libc::SYS_mknod, errno: libc::EPERM, when: &[is_one_of(1, bits::FILE_TYPE, bits::DEVICES)] },
    on_init(libc::SYS_prlimit64),
    on_init(libc::SYS_sched_setaffinity),
    on_init(libc::SYS_sched_setscheduler),
    on_init(libc::SYS_sched_setparam),
    on_init(libc::SYS_sched_setattr),
    Rule {
        call: libc::SYS_setpriority,
        errno: libc::EPERM,
        when: &[is_one_of(0, ALL_BITS, bits::PRIORITY_PROCESS), is_one_of(1, ALL_BITS, bits::INIT)],
    },
    Rule { call: libc::SYS_setpriority, errno: libc::EPERM, when: &[is_one_of(0, ALL_BITS, bits::PRIORITY_USER)] },
    Rule {
        call: libc::SYS_ioprio_set,
        errno: libc::EPERM,
        when: &[is_one_of(0, ALL_BITS, bits::DISK_PRIORITY_PROCESS), is_one_of(1, ALL_BITS, bits::INIT)],
    },
    Rule { call: libc::SYS_ioprio_set, errno: libc::EPERM, when: &[is_one_of(0, ALL_BITS, bits::DISK_PRIORITY_USER)] },
    Rule { call: libc::SYS_renameat2, errno: libc::EINVAL, when: &[is_none_of(4, bits::WHITEOUT, &[0])] },
];

/// The filter of a sandbox. `memory_watched`: its memory is what its processes show, because no control group holds it.
#[must_use]
pub fn sandbox_filter(memory_watched: bool) -> Vec<sock_filter> {
    let denied = DENIED.iter().chain(DENIED_HERE).map(|call| Rule { call: *call, errno: libc::EPERM, when: &[] });
    let unseen = UNSEEN_MEMORY.iter().filter(|_| memory_watched).map(|call| Rule { call: *call, errno: libc::ENOSYS, when: &[] });
    let rules: Vec<Rule> = denied.chain(unseen).chain(RULES.iter().copied()).collect();
    compile(&rules)
}

/// Compiles a table; the first rule that matches counts, and what none matches is allowed.
#[must_use]
pub fn compile(rules: &[Rule]) -> Vec<sock_filter> {
    let mut program = vec![
        load(AT_ARCHITECTURE),
        jump(libc::BPF_JEQ, ARCHITECTURE, 1, 0),
        answer(libc::SECCOMP_RET_KILL_PROCESS),
        load(AT_CALL),
        jump(libc::BPF_JGT, CALL_MAX, 0, 1),
        deny(libc::ENOSYS),
    ];
    for rule in rules {
        // From the end: each condition that does not hold jumps over all that follows it in this rule.
        let mut rest = vec![deny(rule.errno)];
        for condition in rule.when.iter().rev() {
            let mut look = conditional(condition, rest.len());
            look.append(&mut rest);
            rest = look;
        }
        let call = u32::try_from(rule.call).expect("calls are small numbers");
        program.extend([load(AT_CALL), jump(libc::BPF_JEQ, call, 0, rest.len())]);
        program.append(&mut rest);
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

/// Goes on with the next instruction when the condition holds, else `skipped` further.
fn conditional(condition: &Condition, skipped: usize) -> Vec<sock_filter> {
    let mut code =
        vec![load(AT_ARGUMENTS + 8 * condition.argument), statement(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, condition.mask)];
    let count = condition.values.len();
    for (index, value) in condition.values.iter().enumerate() {
        let left = count - 1 - index;
        let otherwise = if condition.is_one && left == 0 { skipped } else { 0 };
        let found = if condition.is_one { left } else { left + skipped };
        code.push(jump(libc::BPF_JEQ, *value, found, otherwise));
    }
    code
}

fn statement(code: u32, k: u32) -> sock_filter {
    sock_filter { code: u16::try_from(code).expect("codes have 16 bits"), jt: 0, jf: 0, k }
}

fn load(offset: u32) -> sock_filter {
    statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

fn jump(test: u32, value: u32, yes: usize, no: usize) -> sock_filter {
    let short = |distance| u8::try_from(distance).expect("a rule is short");
    sock_filter { jt: short(yes), jf: short(no), ..statement(libc::BPF_JMP | test | libc::BPF_K, value) }
}

fn answer(action: u32) -> sock_filter {
    statement(libc::BPF_RET | libc::BPF_K, action)
}

fn deny(errno: i32) -> sock_filter {
    answer(libc::SECCOMP_RET_ERRNO | u32::try_from(errno).expect("error numbers are small"))
}

/// Puts this thread and all that it starts behind a filter, for ever; safe between fork and exec.
/// # Errors
/// The kernel has no seccomp, or neither `no_new_privs` nor a capability allows it.
pub fn install(program: &[sock_filter]) -> io::Result<()> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let program = libc::sock_fprog { len: length, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program lives across the call, has `len` instructions, and the kernel only reads it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, 0 as libc::c_uint, &raw const program) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
