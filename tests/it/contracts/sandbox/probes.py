"""Attempts from inside a sandbox, each of which must fail. Compiles nothing; system calls (x86-64) go through ctypes.

The first argument is the file with the baits that the test has laid on the host, the second the file for the results: one JSON object per
line with the probe's name, its outcome (`refused`, `through` or `broken`) and what was seen. Each probe runs in a process of its own.
"""

import ctypes, errno, json, mmap, os, resource, signal, socket, stat, struct, sys

LIBC = ctypes.CDLL(None, use_errno=True)
BAIT = json.load(open(sys.argv[1]))
PROBES = []
DENIED = {"EPERM", "EACCES"}
ABSENT = {"ENOENT", "EACCES"}


class Through(Exception):
    """The attempt succeeded."""


def probe(name, allowed, attempt):
    PROBES.append((name, allowed, attempt))


def syscall(number, *arguments):
    ctypes.set_errno(0)
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *longs)
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def call(name, number, *arguments, allowed=DENIED):
    probe(name, allowed, lambda: syscall(number, *arguments))


def read(name, path, allowed=ABSENT):
    def attempt():
        with open(path, "rb") as file:
            file.read(1)
    probe(name, allowed, attempt)


def listing(name, path, allowed=ABSENT):
    probe(name, allowed, lambda: os.listdir(path))


def write(name, path, text=b"1", allowed=DENIED | {"EROFS", "ENOENT"}):
    def attempt():
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, text)
    probe(name, allowed, attempt)


def create(name, path, allowed=DENIED | {"EROFS"}):
    probe(name, allowed, lambda: os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))


def connect(name, family, address, allowed, kind=socket.SOCK_STREAM):
    def attempt():
        with socket.socket(family, kind) as found:
            found.settimeout(5)
            found.connect(address)
            found.send(b"x")
    probe(name, allowed, attempt)


def absent(name, look):
    """The look finds a list of what should not be there."""
    def attempt():
        found = look()
        if not found:
            raise OSError(errno.ENOENT, "nothing found")
        raise Through(str(found)[:200])
    probe(name, {"ENOENT"}, attempt)


def survive(name, act):
    """Aimed at init: refused, or ignored by the kernel. That init lives is seen by the end of the whole run."""
    def attempt():
        act()
        raise OSError(errno.EPERM, "ignored")
    probe(name, {"EPERM", "EACCES", "ESRCH"}, attempt)


# The host's files.
for name, path in BAIT["files"].items():
    read("read " + name, path)
for name, path in BAIT["folders"].items():
    listing("list " + name, path)
listing("list the home of root", "/root")
listing("list /sys", "/sys")
read("read the shadow passwords", "/etc/shadow")
read("read a file that no rule names", "/.forbidden", {"EACCES"})


def walk(names):
    found = []
    for folder, folders, files in os.walk("/"):
        folders[:] = [f for f in folders if folder != "/" or f not in ("proc", "usr")]
        found += [os.path.join(folder, f) for f in files + folders if f in names]
    return found


absent("find the control socket", lambda: walk({"control.sock", "new.sock"}))
absent("find the exit report, identity or spec", lambda: walk({"exit.json", "wait.json", "identity.json", "session", "spec.json"}))
absent("find the init program", lambda: walk({"mosaic-init"}))
absent("find a file of the host's docker", lambda: walk({"docker.sock", "containerd.sock"}))

# The host's processes.
def processes():
    pids = [p for p in os.listdir("/proc") if p.isdigit()]
    def line(pid):
        try:
            return open(f"/proc/{pid}/cmdline", "rb").read().decode(errors="replace")
        except OSError:
            return ""
    return [p for p in pids if BAIT["marker"] in line(p)]


absent("see a process of the host", processes)
absent("inherit a descriptor", lambda: [f for f in BAIT_FDS if f > 2])
absent("see the caller's environment", lambda: [v for v in os.environ.values() if BAIT["environment"] in v])
probe("kill a process of the host", {"ESRCH", "EPERM"}, lambda: os.kill(BAIT["pid"], signal.SIGKILL))

# init.
for part in ["mem", "environ", "maps", "auxv", "root", "exe", "cwd", "fd", "ns/pid", "stack", "syscall", "io"]:
    probe("open /proc/1/" + part, ABSENT | {"EPERM"}, lambda part=part: os.open("/proc/1/" + part, os.O_RDONLY))
probe("write the memory of init", ABSENT, lambda: os.open("/proc/1/mem", os.O_WRONLY))
absent("see init in /proc", lambda: [p for p in os.listdir("/proc") if p == "1"])
survive("kill init", lambda: os.kill(1, signal.SIGKILL))
survive("stop init", lambda: os.kill(1, signal.SIGSTOP))
survive("terminate init", lambda: os.kill(1, signal.SIGTERM))
survive("crash init", lambda: os.kill(1, signal.SIGSEGV))
survive("signal init by thread", lambda: syscall(234, 1, 1, 9))
survive("signal init by pidfd", lambda: syscall(424, os.pidfd_open(1), 9, 0, 0))


def signal_by_file():
    import fcntl
    ours, theirs = socket.socketpair()
    fcntl.fcntl(ours, fcntl.F_SETOWN, 1)
    fcntl.fcntl(ours, 10, signal.SIGKILL)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    theirs.send(b"x")


survive("signal init by file events", signal_by_file)
probe("limit the processor time of init", DENIED, lambda: resource.prlimit(1, resource.RLIMIT_CPU, (0, 0)))
probe("limit the file size of init", DENIED, lambda: resource.prlimit(1, resource.RLIMIT_FSIZE, (0, 0)))
probe("limit the descriptors of init", DENIED, lambda: resource.prlimit(1, resource.RLIMIT_NOFILE, (0, 0)))
probe("slow init down", DENIED, lambda: os.setpriority(os.PRIO_PROCESS, 1, 19))
probe("slow the user down", DENIED, lambda: os.setpriority(os.PRIO_USER, os.getuid(), 19))
probe("make init idle", DENIED, lambda: os.sched_setscheduler(1, os.SCHED_IDLE, os.sched_param(0)))
probe("pin init to a processor", DENIED, lambda: os.sched_setaffinity(1, {0}))
call("take init's turn at the disk", 251, 1, 1, 3 << 13)
call("take the user's turn at the disk", 251, 3, os.getuid(), 3 << 13)
call("trace init", 101, 16, 1, 0, 0)
call("seize init", 101, 0x4206, 1, 0, 0)
call("be traced", 101, 0, 0, 0, 0)
BUFFER = ctypes.create_string_buffer(64)
IOVEC = (ctypes.c_void_p * 2)(ctypes.addressof(BUFFER), 8)
call("read the memory of init", 310, 1, IOVEC, 1, IOVEC, 1, 0)
call("write into init", 311, 1, IOVEC, 1, IOVEC, 1, 0)
probe("take a descriptor of init", DENIED, lambda: syscall(438, os.pidfd_open(1), 3, 0))
call("compare with init", 312, 1, os.getpid(), 0, 0, 0)
probe("advise the memory of init", DENIED, lambda: syscall(440, os.pidfd_open(1), IOVEC, 1, 21, 0))
probe("release the memory of init", DENIED, lambda: syscall(448, os.pidfd_open(1), 0))
call("move the pages of init", 279, 1, 0, 0, 0, 0, 0)

# The kernel's files.
for path in ["kernel/hostname", "kernel/core_pattern", "kernel/modprobe", "vm/drop_caches", "kernel/randomize_va_space", "user/max_user_namespaces", "net/ipv4/ip_forward"]:
    write("write /proc/sys/" + path, "/proc/sys/" + path)
write("write /proc/sysrq-trigger", "/proc/sysrq-trigger", b"h")
write("escape the out-of-memory killer", "/proc/self/oom_score_adj", b"-1000")
write("map ids", "/proc/self/uid_map", b"0 0 1")
write("write to /sys", "/sys/kernel/uevent_helper")
write("join a control group", "/sys/fs/cgroup/cgroup.procs", b"0")
read("read the kernel's log", "/proc/kmsg", DENIED | {"ENOENT"})
read("read /dev/kmsg", "/dev/kmsg")
read("read /dev/mem", "/dev/mem")
read("open /dev/fuse", "/dev/fuse")
read("open /dev/kvm", "/dev/kvm")
read("open /dev/net/tun", "/dev/net/tun")
absent("read the kernel's memory", lambda: open("/proc/kcore", "rb").read(1))
absent("read the keys of the host", lambda: open("/proc/keys", "rb").read(1) + open("/proc/key-users", "rb").read(1))
absent("find a block device", lambda: [d for d, _, fs in os.walk("/dev") for f in fs if stat.S_ISBLK(os.lstat(os.path.join(d, f)).st_mode)])
call("read the kernel's log by call", 103, 3, BUFFER, 64)

# What is read-only.
for path in ["/probe", "/usr/bin/probe", "/etc/probe", "/mosaic/probe", "/mosaic/link/probe", "/mosaic/base/objects/probe", "/run/probe", "/dev/probe", "/proc/probe"]:
    create("make " + path, path, DENIED | {"EROFS", "ENOENT"})
write("change the task", "/mosaic/task.json")
write("change the passwords", "/etc/passwd")
write("change the shell", "/bin/sh", allowed=DENIED | {"EROFS", "ETXTBSY"})
probe("replace the folder of results", DENIED | {"EROFS", "EBUSY", "EXDEV"}, lambda: os.rename("/mosaic/out", "/mosaic/away"))

# The network.
UNREACHED = {"ENETUNREACH", "EHOSTUNREACH", "EACCES", "EPERM"}
connect("reach the host's loopback", socket.AF_INET, ("127.0.0.1", BAIT["port"]), {"ECONNREFUSED"})
connect("reach the host's IPv6 loopback", socket.AF_INET6, ("::1", BAIT["port6"]), {"ECONNREFUSED", "EADDRNOTAVAIL", "ENETUNREACH"})
connect("reach an address", socket.AF_INET, ("192.0.2.1", 80), UNREACHED)
connect("reach a private address", socket.AF_INET, ("10.0.0.1", 80), UNREACHED)
connect("reach the cloud's metadata", socket.AF_INET, ("169.254.169.254", 80), UNREACHED)
connect("reach an IPv6 address", socket.AF_INET6, ("2001:db8::1", 80), UNREACHED)
connect("reach a name server", socket.AF_INET, ("8.8.8.8", 53), UNREACHED, socket.SOCK_DGRAM)
connect("reach an abstract socket of the host", socket.AF_UNIX, "\0" + BAIT["abstract"], {"ECONNREFUSED", "EPERM"})
connect("reach a Unix socket of the host", socket.AF_UNIX, BAIT["socket"], ABSENT)
connect("reach the host's bus", socket.AF_UNIX, "/run/dbus/system_bus_socket", ABSENT)


def resolve():
    try:
        socket.getaddrinfo("example.com", 80)
    except socket.gaierror as refusal:
        raise OSError(errno.EHOSTUNREACH, str(refusal))


probe("resolve a name", {"EHOSTUNREACH"}, resolve)
for name, family, kind, protocol, allowed in [
    ("open a raw socket", 2, 3, 1, DENIED),
    ("open a raw IPv6 socket", 10, 3, 58, DENIED),
    ("open a packet socket", 17, 3, 0x300, {"EAFNOSUPPORT"}),
    ("open a crypto socket", 38, 5, 0, {"EAFNOSUPPORT"}),
    ("open a vsock socket", 40, 1, 0, {"EAFNOSUPPORT"}),
    ("open a bluetooth socket", 31, 3, 1, {"EAFNOSUPPORT"}),
    ("open an XDP socket", 44, 3, 0, {"EAFNOSUPPORT"}),
    ("open a key socket", 15, 3, 2, {"EAFNOSUPPORT"}),
    ("open a TIPC socket", 30, 1, 0, {"EAFNOSUPPORT"}),
    ("open an SCTP socket", 2, 1, 132, {"EPROTONOSUPPORT"}),
    ("open a packet-type socket", 2, 10, 0x300, DENIED),
    ("listen to audit", 16, 3, 9, {"EPROTONOSUPPORT"}),
    ("listen to device events", 16, 3, 15, {"EPROTONOSUPPORT"}),
    ("change firewall rules", 16, 3, 12, {"EPROTONOSUPPORT"}),
]:
    call(name, 41, family, kind, protocol, allowed=allowed)


def add_address():
    import fcntl
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        fcntl.ioctl(found, 0x8916, struct.pack("16sH2s4s8s", b"lo", 2, b"", bytes([10, 0, 0, 1]), b""))


probe("give an interface an address", DENIED, add_address)

# Shared memory of the host.
call("find the host's shared memory", 29, BAIT["key"], 4096, 0, allowed={"ENOENT", "ENOSYS"})
call("attach the host's shared memory", 30, BAIT["memory"], 0, 0, allowed={"EINVAL"})

# Namespaces, mounts, roots.
for name, flag in [("user", 0x10000000), ("mount", 0x20000), ("pid", 0x20000000), ("network", 0x40000000), ("ipc", 0x8000000), ("uts", 0x4000000), ("cgroup", 0x2000000), ("time", 0x80)]:
    call(f"unshare a {name} namespace", 272, flag)
for name, flag in [("user", 0x10000000), ("user and mount", 0x10020000), ("network", 0x40000000)]:
    call(f"clone into a {name} namespace", 56, flag | 17, 0, 0, 0, 0)
call("clone by the new call", 435, 0, 0, allowed={"ENOSYS"})
probe("enter a namespace", DENIED, lambda: syscall(308, os.open("/proc/self/ns/net", os.O_RDONLY), 0))
call("mount a tmpfs", 165, b"none", b"/tmp", b"tmpfs", 0, 0)
call("bind the root", 165, b"/", b"/tmp", b"", 4096, 0)
call("make the root writable", 165, b"", b"/", b"", 32 | 4096, 0)
call("mount proc", 165, b"proc", b"/tmp", b"proc", 0, 0)
call("unmount a cover", 166, b"/proc/kcore", 2)
call("change the root by pivot", 155, b"/tmp", b"/tmp")
call("change the root", 161, b"/tmp")
call("open a file system", 430, b"tmpfs", 0)
call("open a tree", 428, -100, b"/", 1)
call("move a mount", 429, -100, b"/tmp", -100, b"/workspace", 0)
call("set a mount's attributes", 442, -100, b"/", 0, BUFFER, 32)
call("open by handle", 304, -100, BUFFER, 0)
call("name a handle", 303, -100, b"/", BUFFER, BUFFER, 0)
call("watch the file system", 300, 0, 0)

# Privileges.
# EINVAL: there is no such id in this user namespace.
call("become root", 105, 0, allowed={"EINVAL"})
call("become group root", 106, 0, allowed={"EINVAL"})
call("take groups", 116, 1, (ctypes.c_uint * 1)(0))
HEADER = (ctypes.c_uint * 2)(0x20080522, 0)
call("take capabilities", 126, HEADER, (ctypes.c_uint * 6)(0xFFFFFFFF, 0xFFFFFFFF, 0, 0, 0, 0))
absent("find a mount with setuid programs", lambda: [p for p in ["/", "/usr", "/tmp", "/workspace", "/home/agent", "/mosaic/out", "/dev/shm"] if not os.statvfs(p).f_flag & os.ST_NOSUID])
absent("gain by a program", lambda: [line for line in open("/proc/self/status") if line.startswith(("NoNewPrivs:\t0", "Seccomp:\t0"))])


def own_file(name):
    path = "/workspace/" + name
    open(path, "w").close()
    return path


probe("give a file to root", {"EINVAL"}, lambda: os.chown(own_file("chown"), 0, 0))
probe("give a file capabilities", DENIED, lambda: os.setxattr(own_file("caps"), "security.capability", struct.pack("<IIIII", 0x2000001, 0x3FFF, 0, 0, 0)))
probe("set a trusted attribute", DENIED, lambda: os.setxattr(own_file("trusted"), "trusted.overlay.opaque", b"y"))
probe("make a character device", DENIED, lambda: os.mknod("/workspace/char", 0o600 | stat.S_IFCHR, os.makedev(1, 1)))
probe("make a block device", DENIED, lambda: os.mknod("/tmp/block", 0o600 | stat.S_IFBLK, os.makedev(8, 0)))
probe("make a whiteout", DENIED, lambda: os.mknod("/workspace/whiteout", 0o600 | stat.S_IFCHR, 0))
probe("leave a whiteout", {"EINVAL"}, lambda: syscall(316, -100, own_file("old").encode(), -100, b"/workspace/new", 4))
call("raise a hard limit", 302, 0, 4, (ctypes.c_ulong * 2)(1 << 20, 1 << 20), 0)
probe("lower the own nice value", DENIED, lambda: os.setpriority(os.PRIO_PROCESS, 0, -20))
probe("run in real time", DENIED, lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50)))

# The kernel's doors.
for name, number, arguments in [
    ("load a module", 175, (BUFFER, 64, b"")), ("load a module file", 313, (0, b"", 0)), ("unload a module", 176, (b"x", 0)),
    ("load a kernel", 246, (0, 0, 0, 0)), ("load a kernel file", 320, (0, 0, 0, 0, 0)), ("use bpf", 321, (0, BUFFER, 64)),
    ("watch performance", 298, (BUFFER, 0, -1, -1, 0)), ("handle page faults", 323, (1,)), ("set io_uring up", 425, (1, BUFFER)),
    ("enter io_uring", 426, (0, 0, 0, 0, 0, 0)), ("register with io_uring", 427, (0, 0, 0, 0)), ("join a keyring", 250, (1, 0)),
    ("read the session keyring", 250, (11, -3, BUFFER, 64)), ("add a key", 248, (b"user", b"x", b"y", 1, -4)), ("request a key", 249, (b"user", b"x", 0, -4)),
    ("reboot", 169, (0xFEE1DEAD, 672274793, 0, 0)), ("swap", 167, (b"/tmp/x", 0)), ("stop swapping", 168, (b"/tmp/x",)), ("write accounts", 163, (0,)),
    ("set quotas", 179, (0, 0, 0, 0)), ("raise the I/O level", 172, (3,)), ("reach I/O ports", 173, (0x70, 2, 1)),
    ("look up a cookie", 212, (0, BUFFER, 64)), ("change the personality", 135, (0x0040000,)), ("read other programs as 32-bit", 135, (8,)),
    ("change the descriptor table", 154, (1, BUFFER, 16)), ("set the host name", 170, (b"x", 1)), ("set the domain name", 171, (b"x", 1)),
    ("set the time", 164, (BUFFER, 0)), ("set a clock", 227, (0, BUFFER)), ("hang up the terminal", 153, ()), ("migrate pages", 256, (1, 0, 0, 0)),
    ("type into a terminal", 16, (0, 0x5412, b"x")), ("use the console", 16, (0, 0x541C, BUFFER)), ("redirect the console", 16, (0, 0x541D, 0)),
    ("set a line discipline", 16, (0, 0x5423, BUFFER)),
]:
    call(name, number, *arguments)
call("use an x32 call", 0x40000000 + 39, allowed={"ENOSYS"})
call("use a call that came later", 470, 0, 0, 0, 0, allowed={"ENOSYS"})


def old_gate():
    """A 32-bit call by interrupt: getpid of the 32-bit table."""
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
    ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()


probe("use a 32-bit call", {"SIGSYS", "SIGSEGV"}, old_gate)


def outcome_of(allowed, attempt):
    """Runs one attempt in a process of its own; its words come back through a pipe."""
    mine, its = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(mine)
        try:
            attempt()
            word = "through:"
        except Through as found:
            word = f"through:{found}"
        except OSError as refusal:
            name = errno.errorcode.get(refusal.errno, str(refusal))
            word = ("refused:" if name in allowed else "broken:") + f"{name} {refusal}"
        except BaseException as other:
            word = f"broken:{other!r}"
        os.write(its, word.encode()[:2000])
        os._exit(0)
    os.close(its)
    text = b""
    while chunk := os.read(mine, 4096):
        text += chunk
    os.close(mine)
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        name = signal.Signals(os.WTERMSIG(status)).name
        return ("refused" if name in allowed else "broken"), name
    outcome, _, seen = text.decode(errors="replace").partition(":")
    return outcome or "broken", seen


BAIT_FDS = []
for number in range(256):
    try:
        os.fstat(number)
        BAIT_FDS.append(number)
    except OSError:
        pass
with open(sys.argv[2], "w") as results:
    for name, allowed, attempt in PROBES:
        outcome, seen = outcome_of(allowed, attempt)
        results.write(json.dumps({"name": name, "outcome": outcome, "seen": seen}) + "\n")
        results.flush()
    results.write(json.dumps({"name": "end", "outcome": "end", "seen": str(len(PROBES))}) + "\n")
