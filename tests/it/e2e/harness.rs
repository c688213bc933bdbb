//! A `mosaic up` of its own for each test, a git remote beside it, and ways to look at both from the outside.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Longest time that any one agent of these tests may take on a slow, shared machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A running `mosaic up` and its folder; both go when it is dropped.
pub struct Mosaic {
    pub folder: tempfile::TempDir,
    pub flags: Vec<String>,
    /// Environment of the controller beside the test's own.
    pub environment: Vec<(String, String)>,
    child: Option<Child>,
}

impl Mosaic {
    /// Starts on a fresh folder; repositories beneath it are allowed.
    pub fn start(flags: &[&str]) -> Self {
        let mut this = Self::prepare(flags);
        this.up();
        this
    }

    /// The same, not started yet.
    pub fn prepare(flags: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("mosaic-e2e-").tempdir().unwrap();
        Self { folder, flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), environment: Vec::new(), child: None }
    }

    /// Its state folder: beneath its own folder, or where a flag says.
    pub fn state(&self) -> PathBuf {
        let named = self.flags.iter().position(|flag| flag == "--state").and_then(|at| self.flags.get(at + 1));
        named.map_or_else(|| self.folder.path().join("state"), PathBuf::from)
    }

    /// The command of this `up`, not started yet.
    pub fn command(&self) -> Command {
        let mut command = program();
        command.args(["up", "--listen", "127.0.0.1:0", "--local-repos"]).arg(self.folder.path());
        if !self.flags.iter().any(|flag| flag == "--state") {
            command.arg("--state").arg(self.state());
        }
        command.args(&self.flags).envs(self.environment.clone()).stdin(Stdio::null());
        command
    }

    /// Starts the controller (again) and waits until it is ready.
    pub fn up(&mut self) {
        let _ = std::fs::remove_file(self.state().join("server"));
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("up.log")).unwrap();
        let mut command = self.command();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
        let started = Instant::now();
        while !self.is_ready() {
            let child = self.child.as_mut().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "mosaic up ended: {}", self.log());
            assert!(started.elapsed() < Duration::from_secs(60), "mosaic up is not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether it answers and knows all records.
    pub fn is_ready(&self) -> bool {
        let Ok(server) = std::fs::read_to_string(self.state().join("server")) else { return false };
        http("GET", &format!("{}/readyz", server.trim()), None, None).is_ok_and(|(status, _)| status == 200)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("up.log")).unwrap_or_default()
    }

    /// SIGKILL, without a word.
    pub fn sigkill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM and a clean end.
    pub fn sigterm(&mut self) {
        if let Some(mut child) = self.child.take() {
            rustix::process::kill_process(rustix::process::Pid::from_child(&child), rustix::process::Signal::TERM).unwrap();
            assert!(child.wait().unwrap().success(), "a clean end: {}", self.log());
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// A call with the token; the answer's status and JSON (or text).
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let server = std::fs::read_to_string(self.state().join("server")).unwrap();
        let token = std::fs::read_to_string(self.state().join("token")).unwrap();
        http(method, &format!("{}{path}", server.trim()), Some(token.trim()), body).unwrap()
    }

    /// Declares an agent and returns its uid.
    pub fn spawn(&self, body: &Value) -> String {
        let (status, answer) = self.call("POST", "/agents/spawn", Some(body));
        assert!(status == 201 || status == 200, "{status}: {answer}");
        answer["agentId"].as_str().unwrap().to_owned()
    }

    /// The whole object of an agent.
    pub fn object(&self, uid: &str) -> Value {
        let (status, answer) = self.call("GET", &format!("/agents/{uid}"), None);
        assert_eq!(status, 200, "{answer}");
        answer["object"].clone()
    }

    /// Waits until the object answers the question.
    pub fn wait(&self, uid: &str, what: &str, done: impl Fn(&Value) -> bool) -> Value {
        let started = Instant::now();
        loop {
            let object = self.object(uid);
            if done(&object) {
                return object;
            }
            assert!(started.elapsed() < PATIENCE, "waited for {what}, saw {object:#}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(30));
        }
    }

    /// Waits until the agent has ended and everything of it was removed.
    pub fn wait_ended(&self, uid: &str) -> Value {
        self.wait(uid, "the end", |object| condition(object, "CleanedUp") == "True" && !object["status"]["completedAt"].is_null())
    }

    pub fn wait_completed(&self, uid: &str) -> Value {
        let object = self.wait_ended(uid);
        assert_eq!(object["status"]["phase"], "Completed", "{object:#}\n{}", self.log());
        object
    }

    /// What is left on this machine of sandboxes and trees: processes whose PID 1 is ours, mounts and folders below the state folder.
    pub fn leftovers(&self) -> Vec<String> {
        let state = self.state().canonicalize().unwrap_or_else(|_| self.state());
        let mut left = processes_inside(&state);
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(state.to_str().unwrap())).map(|line| format!("mount {line}")));
        for folder in ["trees", "gate-trees"] {
            let entries = std::fs::read_dir(state.join(folder)).into_iter().flatten().flatten();
            left.extend(entries.map(|entry| format!("folder {}", entry.path().display())));
        }
        let runs = std::fs::read_dir(state.join("runs")).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir());
        left.extend(runs.map(|entry| format!("folder {}", entry.path().display())));
        left
    }

    /// Waits until nothing is left.
    pub fn assert_nothing_left(&self) {
        let started = Instant::now();
        loop {
            let left = self.leftovers();
            if left.is_empty() {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(40), "left behind: {left:#?}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Mosaic {
    fn drop(&mut self) {
        // Sandboxes first, by the front door, so that a failed test leaves nothing running; then the controller.
        if self.child.is_some() && self.is_ready() {
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.call("POST", "/agents/kill-all", Some(&json!({})))));
        }
        self.sigkill();
        for pid in sandbox_pids(&self.state()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |line: &&str| line.contains(self.folder.path().to_str().unwrap());
        for line in mounts.lines().filter(below) {
            if let Some(target) = line.split(' ').nth(4) {
                let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
            }
        }
    }
}

/// The built program with an init that fits it.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mosaic"));
    command.env_remove("MOSAIC_SERVER").env_remove("MOSAIC_TOKEN").env_remove("MOSAIC_STATE");
    // Whatever engine this machine has.
    command.env("MOSAIC_DRIVER", "process");
    command
}

/// A number that a longer run asks for by a variable, or what every run does.
pub fn wanted<T: std::str::FromStr>(name: &str, usual: T) -> T {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// Unmounts. For a moment any process that is just being started anywhere holds what this one has open.
pub fn unmount(target: &Path) {
    eventually("the unmount", || match rustix::mount::unmount(target, rustix::mount::UnmountFlags::NOFOLLOW) {
        Ok(()) => true,
        Err(rustix::io::Errno::BUSY) => false,
        Err(error) => panic!("{}: {error}", target.display()),
    });
}

/// Waits until something is so.
pub fn eventually(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The status ("True", "False", "") of a condition.
pub fn condition<'a>(object: &'a Value, type_: &str) -> &'a str {
    let conditions = object["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    conditions.iter().find(|c| c["type"] == type_).and_then(|c| c["status"].as_str()).unwrap_or_default()
}

/// Host pids that are PID 1 of a sandbox of this state folder, from the identity files that the launcher wrote.
pub fn sandbox_pids(state: &Path) -> Vec<rustix::process::Pid> {
    let runs = std::fs::read_dir(state.join("runs")).into_iter().flatten().flatten();
    let identity = |run: std::fs::DirEntry| -> Option<i32> {
        let text = std::fs::read_to_string(run.path().join("identity.json")).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let pid = value["pid"].as_i64()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let start = stat.rsplit(')').next()?.split_whitespace().nth(19)?.to_owned();
        (value["startTicks"].as_u64()?.to_string() == start && !stat.contains(") Z ")).then_some(i32::try_from(pid).ok()?)
    };
    runs.filter_map(identity).filter_map(rustix::process::Pid::from_raw).collect()
}

/// Live processes in other mount namespaces whose mounts lead into the state folder: whatever is or was inside a sandbox of it.
fn processes_inside(state: &Path) -> Vec<String> {
    let own = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let name = state.to_str().unwrap().to_owned();
    let inside = |folder: std::path::PathBuf| -> Option<String> {
        let namespace = std::fs::read_link(folder.join("ns/mnt")).ok()?;
        let mounts = std::fs::read_to_string(folder.join("mountinfo")).ok()?;
        let command = std::fs::read_to_string(folder.join("cmdline")).ok()?.replace('\0', " ");
        (namespace != own && mounts.contains(&name)).then(|| format!("process {}: {command}", folder.display()))
    };
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|b| b.is_ascii_digit()))
        .filter_map(|e| inside(e.path()))
        .collect()
}

/// One HTTP call over a fresh connection, without any of the product's code.
pub fn http(method: &str, url: &str, token: Option<&str>, body: Option<&Value>) -> Result<(u16, Value), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let client = reqwest::Client::builder().timeout(Duration::from_secs(30)).build().map_err(|e| e.to_string())?;
        let mut request = client.request(method.parse().map_err(|_| "method")?, url);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await.map_err(|e| e.to_string())?;
        let status = answer.status().as_u16();
        let text = answer.text().await.map_err(|e| e.to_string())?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::String(text))))
    })
}

/// A bare remote with one commit on `main`.
pub struct Remote {
    pub path: PathBuf,
    seed: PathBuf,
}

impl Remote {
    /// Makes the remote beneath a folder, with these files on `main`.
    pub fn new(beneath: &Path, name: &str, files: &[(&str, &str)]) -> Self {
        let (path, seed) = (beneath.join(format!("{name}.git")), beneath.join(format!("{name}-seed")));
        git(beneath, &["init", "-q", "--bare", "-b", "main", path.to_str().unwrap()]);
        git(beneath, &["init", "-q", "-b", "main", seed.to_str().unwrap()]);
        git(&seed, &["remote", "add", "origin", path.to_str().unwrap()]);
        let remote = Self { path, seed };
        remote.commit(files, "first");
        remote
    }

    /// Somebody else pushes to `main`.
    pub fn commit(&self, files: &[(&str, &str)], message: &str) -> String {
        for (name, content) in files {
            let path = self.seed.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        git(&self.seed, &["add", "-A"]);
        git(&self.seed, &["commit", "-q", "-m", message]);
        git(&self.seed, &["push", "-q", "origin", "main"]);
        git(&self.seed, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    /// All branches and their commits, as git itself reports them.
    pub fn refs(&self) -> BTreeMap<String, String> {
        let out = git(&self.seed, &["ls-remote", "--heads", self.path.to_str().unwrap()]);
        out.lines().filter_map(|line| line.split_once('\t')).map(|(sha, name)| (name.to_owned(), sha.to_owned())).collect()
    }

    /// Refs besides `main`.
    pub fn agent_refs(&self) -> BTreeMap<String, String> {
        self.refs().into_iter().filter(|(name, _)| name != "refs/heads/main").collect()
    }

    /// Runs git in the remote itself.
    pub fn git(&self, args: &[&str]) -> String {
        git(&self.path, args)
    }

    pub fn url(&self) -> &str {
        self.path.to_str().unwrap()
    }
}

/// The git program with a clean environment; must succeed.
pub fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(folder).args(["-c", "user.name=Seed", "-c", "user.email=seed@example.org", "-c", "safe.directory=*"]).args(args);
    command.env("GIT_CONFIG_NOSYSTEM", "1").env("GIT_CONFIG_GLOBAL", "/dev/null").env("LC_ALL", "C");
    let out = command.output().unwrap();
    assert!(out.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Gates that any machine can run: `tests` and `lint` as shell commands.
pub fn gates(tests: &str, lint: &str) -> String {
    let gate = |name: &str, command: &str| format!("[[gate]]\nname = \"{name}\"\ncommand = {}\ntimeout = \"60s\"\n\n", json!(command));
    gate("tests", tests) + &gate("lint", lint)
}

/// The body of a spawn with a shell script as agent.
pub fn task(remote: &Remote, task_id: &str, script: &str) -> Value {
    json!({
        "taskId": task_id,
        "agentType": "worker",
        "context": {"repository": remote.url(), "branch": "main", "workItems": [task_id]},
        "runtime": {"command": {"args": ["sh", "-ec", script]}},
        "backoff": {"initial": "200ms", "max": "1s"},
    })
}

/// Small and seeded, so that a failure can be run again: xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}
