//! What each fuzz target does with its bytes. The tests run the kept seeds through the same functions (`tests/it/fuzz_seeds.rs`).
//!
//! None may panic, and what a body asserts must hold, for any bytes at all.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::jiff::Timestamp;
use mosaic::api::agent::{AgentStatus, GateProfile};
use mosaic::api::names::{Attempt, Branch, CommitId, Epoch, Namespace, Role, RunId, Uid};
use mosaic::api::validate::validate;
use mosaic::gates::{GATES_FILE, TrustedTree, gate_set, protected};
use mosaic::inside::link::{LinkClient, Way};
use mosaic::inside::wire::{FOLDER_CONTROL, FOLDER_OUT, GrantAnswer, PATH_RENEW, RenewAnswer, RenewRequest, SOCKET_CONTROL};
use mosaic::plan::fleet::Permit;
use mosaic::plan::observed::{Look, Observed, Snapshot};
use mosaic::plan::{Desired, plan};
use mosaic::sandbox::folder::RunFolder;
use mosaic::sandbox::link::{LinkServer, Origin, Standing};
use mosaic::sandbox::runs::result;
use mosaic::store::{Kind, Record};
use mosaic::workspace::{SnapshotLimits, SnapshotSpec, TreeModeWish, TreeSpec, WorkspaceConfig, Workspaces};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::Duration;
use tempfile::TempDir;

fn uid() -> Uid {
    Uid::new("00000001-0000-4000-8000-000000000000").unwrap()
}

/// A record as it lies in a store: any spec, any status, decoded, checked and planned for.
pub fn record(bytes: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let metadata: ObjectMeta = serde_json::from_value(value["metadata"].clone()).unwrap_or_default();
    let metadata = ObjectMeta { uid: Some(uid().to_string()), ..metadata };
    let record = Record { kind: Kind::Agent, metadata, spec: value["spec"].clone(), status: value["status"].clone() };
    let checked = validate(&record);
    if let Err(errors) = &checked {
        assert!(!errors.is_empty() && errors.iter().all(|error| !error.is_empty()), "refused without a word");
    }
    let status: AgentStatus = serde_json::from_value(record.status.clone()).unwrap_or_default();
    let observed = Observed {
        sandboxes: Look::Seen(Vec::new()),
        workspace: Look::Seen(None),
        in_flight: Default::default(),
        outcomes: Default::default(),
    };
    for deleting in [None, Some("kill")] {
        let spec = checked.as_ref().map_err(Vec::as_slice);
        let uid = uid();
        let desired =
            Desired { uid: &uid, generation: 1, has_finalizer: true, latched: None, deleting, discard: false, status: &status, spec };
        let _ = plan(&desired, &observed, &Permit::Granted, Timestamp::from_second(1_700_000_000).unwrap());
    }
}

/// `.mosaic/gates.toml` of a trusted branch.
pub fn gates_file(bytes: &[u8]) {
    let _ = protected(Some(bytes));
    let read = |path: &str| Ok((path == GATES_FILE).then(|| bytes.to_vec()));
    let tree = TrustedTree { root_files: &[], read: &read };
    for profile in [GateProfile::Minimal, GateProfile::Standard] {
        match gate_set(&tree, profile, &[]) {
            Ok(set) => assert!(!set.gates.is_empty(), "an empty set passes nothing and everything"),
            Err(error) => assert!(!error.message.is_empty()),
        }
    }
}

struct Folder {
    folder: TempDir,
}

fn scratch() -> Folder {
    Folder { folder: tempfile::Builder::new().prefix("mosaic-fuzz-").tempdir().unwrap() }
}

/// `/mosaic/out/result.json`.
pub fn result(bytes: &[u8]) {
    static RUN: OnceLock<Folder> = OnceLock::new();
    let run = RUN.get_or_init(|| {
        let run = scratch();
        fs::create_dir(run.folder.path().join(FOLDER_OUT)).unwrap();
        run
    });
    let folder = RunFolder::at(run.folder.path().to_owned());
    fs::write(run.folder.path().join(FOLDER_OUT).join("result.json"), bytes).unwrap();
    let Some(found) = result::read(&folder) else { return };
    for text in found.summary.iter().chain(found.commit_message.iter()) {
        assert!(!text.is_empty() && !text.contains(|c: char| c.is_control() && !"\n\t".contains(c)), "{text:?}");
    }
}

/// What an agent prints, as it is searched for progress.
pub fn progress(bytes: &[u8]) {
    let Some((fraction, message)) = result::last_progress(bytes) else { return };
    assert!(fraction.is_none_or(|fraction| (0.0..=1.0).contains(&fraction)), "{fraction:?}");
    assert!(message.is_none_or(|message| !message.is_empty() && !message.contains(char::is_control)));
}

struct Wires {
    _runtime: LinkServer,
    folder: Folder,
    listener: UnixListener,
    client: Mutex<LinkClient>,
}

fn wires() -> &'static Wires {
    static WIRES: OnceLock<Wires> = OnceLock::new();
    WIRES.get_or_init(|| {
        let folder = scratch();
        let (real, forged) = (folder.folder.path().join("real"), folder.folder.path().join("forged"));
        let run = RunFolder::at(real);
        let id = |n: u32| if rustix_root() { n } else { own_id() };
        run.make(id(61_357), id(61_357)).unwrap();
        let server = LinkServer::start(Default::default(), Standing::Leads).unwrap();
        server.serve(&RunId { uid: uid(), attempt: Attempt(1), role: Role::Agent }, Epoch(1), 30_000, &run, Origin::Launched).unwrap();
        fs::create_dir(&forged).unwrap();
        let listener = UnixListener::bind(forged.join(SOCKET_CONTROL)).unwrap();
        let client = LinkClient::new(Way::Socket(OwnedFd::from(File::open(&forged).unwrap())));
        Wires { _runtime: server, folder, listener, client: Mutex::new(client) }
    })
}

fn own_id() -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata("/proc/self").unwrap())
}

fn rustix_root() -> bool {
    own_id() == 0
}

/// The link, from both ends: anything said to the controller, and anything answered to init.
pub fn link(bytes: &[u8]) {
    let wires = wires();
    let mut stream = UnixStream::connect(wires.folder.folder.path().join("real").join(FOLDER_CONTROL).join(SOCKET_CONTROL)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    // The server may have had enough before all of it is written.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("\"granted\":true"), "granted to nobody");

    let mut client = wires.client.lock().unwrap();
    client.reset();
    client.send(PATH_RENEW, &RenewRequest { secret: "0".repeat(64) }, 1_000);
    let (mut controller, _) = wires.listener.accept().unwrap();
    // Small enough for the socket's buffer, so that one thread can do both ends.
    let _ = controller.write_all(&bytes[..bytes.len().min(64 * 1024)]);
    drop(controller);
    let _ = client.receive::<RenewAnswer>();
    let _ = serde_json::from_slice::<GrantAnswer>(bytes);
}

const CANARY: &str = "canary-of-the-host-7d1f";

struct Trees {
    _folder: Folder,
    workspaces: Workspaces,
    remote: String,
    base: CommitId,
    tree: PathBuf,
    outside: PathBuf,
}

fn git(folder: &Path, arguments: &[&str]) {
    let identity = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "init.defaultBranch=main", "-c", "safe.directory=*"];
    let status = Command::new("git").args(identity).args(arguments).current_dir(folder).env("GIT_CONFIG_NOSYSTEM", "1").status();
    assert!(status.unwrap().success(), "git {arguments:?}");
}

fn namespace() -> Namespace {
    Namespace::new("default").unwrap()
}

impl Trees {
    fn lay_out() -> Self {
        let folder = scratch();
        let root = folder.folder.path();
        let (state, repositories, outside) = (root.join("state"), root.join("repositories"), root.join("outside"));
        for path in [&state, &repositories, &outside] {
            fs::create_dir(path).unwrap();
        }
        fs::write(outside.join("canary"), CANARY).unwrap();
        git(&repositories, &["init", "--quiet", "project"]);
        fs::create_dir(repositories.join("project/src")).unwrap();
        fs::write(repositories.join("project/src/main.txt"), "main\n").unwrap();
        fs::write(repositories.join("project/.gitignore"), "*.log\n").unwrap();
        git(&repositories.join("project"), &["add", "-A"]);
        git(&repositories.join("project"), &["commit", "--quiet", "-m", "first"]);
        let own = own_id();
        let config = WorkspaceConfig {
            state,
            sandbox_uid: own,
            sandbox_gid: own,
            local_repos: vec![repositories.clone()],
            author_name: "Mosaic".into(),
            author_email: "mosaic@example.org".into(),
            trusted_branches: Vec::new(),
            tree_mode: TreeModeWish::Checkout,
            remote_timeout: Duration::from_secs(60),
            remote_silence: Duration::from_secs(30),
            remotes: Vec::new(),
            askpass: "/bin/false".into(),
            limits: SnapshotLimits::default(),
            cleanups: mosaic::cleanups::Cleanups::default(),
        };
        let workspaces = Workspaces::open(config).unwrap();
        let remote = repositories.join("project").to_str().unwrap().to_owned();
        let target = Branch::new("mosaic/x").unwrap();
        let base = workspaces.resolve(&namespace(), &remote, None, &target).unwrap().base;
        let spec = TreeSpec {
            namespace: namespace(),
            repository: remote.clone(),
            uid: uid(),
            agent: "default/x".to_owned(),
            name: format!("agent-{}-x", uid()),
            attempt: Attempt(1),
            base: base.clone(),
            content: None,
            branch_for_head: target,
        };
        let tree = workspaces.ensure_tree(&spec).unwrap().tree;
        Self { _folder: folder, workspaces, remote, base, tree, outside }
    }
}

/// A new file: opening what is there would follow a link out of the tree or wait at a pipe, in this program rather than in the reader.
fn made(path: &Path) -> io::Result<File> {
    File::options().write(true).create_new(true).open(path)
}

/// A name of at most 32 bytes out of the input, or a bait.
fn name(input: &mut &[u8], outside: &Path) -> Vec<u8> {
    const BAITS: [&[u8]; 8] = [b".git", b".GIT", b"git~1", b".gitmodules", b".g\xe2\x80\x8cit", b".gitattributes", b"src", b"main.txt"];
    let kind = take(input);
    if let Some(bait) = BAITS.get(usize::from(kind)) {
        return bait.to_vec();
    }
    if kind == 8 {
        return outside.file_name().unwrap().as_bytes().to_vec();
    }
    let length = usize::from(kind % 32) + 1;
    let bytes: Vec<u8> = (0..length.min(input.len().max(1))).map(|_| take(input)).filter(|byte| !matches!(byte, 0 | b'/')).collect();
    if bytes.is_empty() || bytes == b"." || bytes == b".." { b"name".to_vec() } else { bytes }
}

fn take(input: &mut &[u8]) -> u8 {
    match input.split_first() {
        Some((first, rest)) => {
            *input = rest;
            *first
        }
        None => 0,
    }
}

/// A tree as an agent may leave it: the input is a program that makes files, folders, links and odder things in it.
pub fn tree_reader(bytes: &[u8]) {
    static TREES: OnceLock<Trees> = OnceLock::new();
    let trees = TREES.get_or_init(Trees::lay_out);
    for entry in fs::read_dir(&trees.tree).unwrap().flatten() {
        let path = entry.path();
        let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o700));
        let _ = if entry.file_type().unwrap().is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
    }
    let (mut input, mut here, mut depth) = (bytes, trees.tree.clone(), 0);
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        let what = take(&mut input) % 10;
        let path = here.join(std::ffi::OsStr::from_bytes(&name(&mut input, &trees.outside)));
        // What cannot be made is not made, as for the agent.
        let _ = match what {
            0 | 1 => made(&path).and_then(|mut file| file.write_all(&input[..input.len().min(usize::from(what) * 40)])),
            2 if depth < 20 => fs::create_dir(&path).map(|()| {
                here.clone_from(&path);
                depth += 1;
            }),
            3 => symlink(trees.outside.join("canary"), &path),
            4 => symlink("../".repeat(depth + 3) + "outside", &path),
            5 => Command::new("mkfifo").arg(&path).status().map(drop),
            6 => fs::set_permissions(&path, fs::Permissions::from_mode(u32::from(take(&mut input)) << 1)),
            7 => made(&path).and_then(|file| file.set_len(u64::from(take(&mut input)) << 28)),
            8 => fs::rename(&path, here.join("moved")),
            _ => {
                if depth > 0 {
                    here.pop();
                    depth -= 1;
                }
                Ok(())
            }
        };
    }
    let spec = SnapshotSpec {
        namespace: namespace(),
        repository: trees.remote.clone(),
        uid: uid(),
        base: trees.base.clone(),
        conflicts: &[],
        message: "work".into(),
        date: Timestamp::from_second(1_700_000_000).unwrap(),
    };
    match trees.workspaces.snapshot(&spec) {
        Ok(Snapshot::Candidate(commit)) => {
            let changes = trees.workspaces.changes(&namespace(), &trees.remote, &trees.base, &commit).unwrap();
            for id in changes.iter().filter_map(|change| change.after.as_deref()) {
                let content = trees.workspaces.read_object(&namespace(), &trees.remote, id).unwrap_or_default();
                assert!(!content.windows(CANARY.len()).any(|part| part == CANARY.as_bytes()), "something outside was read");
            }
        }
        Ok(Snapshot::Refused(lines)) => assert!(lines.iter().all(|line| !line.is_empty())),
        Ok(Snapshot::Unchanged | Snapshot::Unresolved(_)) => {}
        // What the agent made may be unreadable for an ordinary user's controller; that is told, not died of.
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
