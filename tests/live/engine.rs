//! The engine of these tests, and the image that they make for it.

use bollard::Docker;
use bollard::query_parameters::{CreateImageOptionsBuilder, ImportImageOptionsBuilder};
use futures::StreamExt;
use mosaic::sandbox::docker::engine::Engine;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tokio::sync::OnceCell;

/// An image of busybox, with all its programs and nothing else.
pub const BUSYBOX: &str = "mosaic-test-busybox:1";
/// Where Debian's `busybox-static` has it.
const PROGRAM: &str = "/bin/busybox";

static READY: OnceCell<Result<(), String>> = OnceCell::const_new();

/// The engine with the test image; `None`: a test cannot run, which was said.
pub async fn engine(test: &str) -> Option<Engine> {
    let engine = match Engine::connect(None) {
        Ok(engine) => engine,
        Err(error) => {
            crate::skip::skip(test, &mosaic::causes::one_line(&error));
            return None;
        }
    };
    match READY.get_or_init(|| prepare(&engine)).await {
        Ok(()) => Some(engine),
        Err(why) => {
            crate::skip::skip(test, why);
            None
        }
    }
}

async fn prepare(engine: &Engine) -> Result<(), String> {
    let found = engine.image(BUSYBOX).await.map_err(|e| mosaic::causes::one_line(&e))?;
    if found.is_some() {
        return Ok(());
    }
    if !Path::new(PROGRAM).exists() {
        return Err(format!("{PROGRAM} is not here (Debian: busybox-static)"));
    }
    import(BUSYBOX, &[]).await
}

/// Makes an image of busybox; `changes` are lines of a Dockerfile.
pub async fn import(name: &str, changes: &[&str]) -> Result<(), String> {
    let docker = Docker::connect_with_defaults().map_err(|e| e.to_string())?;
    import_into(&docker, name, changes).await
}

/// Loads an empty image that says it is for a machine.
pub async fn load_for(name: &str, architecture: &str) {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("root")).unwrap();
    let tar = |beneath: &str, what: &str| Command::new("tar").arg("-C").arg(at(beneath)).args(["-c", what]).output().unwrap().stdout;
    let layer = tar("root", ".");
    let digest = mosaic::sandbox::folder::hash(&layer);
    fs::create_dir(at("image")).unwrap();
    let config = serde_json::json!({"architecture": architecture, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]}});
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    fs::write(at("image/config.json"), config.to_string()).unwrap();
    fs::write(at("image/manifest.json"), manifest.to_string()).unwrap();
    fs::write(at("image/layer.tar"), layer).unwrap();
    let docker = Docker::connect_with_defaults().unwrap();
    let options = ImportImageOptionsBuilder::default().quiet(true).build();
    let mut lines = docker.import_image(options, bollard::body_full(tar("image", ".").into()), None).boxed();
    while let Some(line) = lines.next().await {
        line.unwrap();
    }
}

async fn import_into(docker: &Docker, name: &str, changes: &[&str]) -> Result<(), String> {
    let texts = |e: &dyn std::fmt::Display| e.to_string();
    let root = tempfile::tempdir().map_err(|e| texts(&e))?;
    for (folder, mode) in [("bin", 0o755), ("etc", 0o755), ("tmp", 0o1777), ("data", 0o755)] {
        fs::create_dir(root.path().join(folder)).map_err(|e| texts(&e))?;
        fs::set_permissions(root.path().join(folder), fs::Permissions::from_mode(mode)).map_err(|e| texts(&e))?;
    }
    fs::copy(PROGRAM, root.path().join("bin/busybox")).map_err(|e| texts(&e))?;
    let applets = Command::new(PROGRAM).arg("--list").output().map_err(|e| texts(&e))?.stdout;
    for applet in String::from_utf8_lossy(&applets).lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", root.path().join("bin").join(applet)).map_err(|e| texts(&e))?;
    }
    let archive = Command::new("tar").arg("-C").arg(root.path()).args(["-c", "."]).output().map_err(|e| texts(&e))?;
    let (repository, tag) = name.split_once(':').unwrap_or((name, "latest"));
    let changes = changes.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
    let options = CreateImageOptionsBuilder::default().from_src("-").repo(repository).tag(tag).changes(changes).build();
    let mut lines = docker.create_image(Some(options), Some(bollard::body_full(archive.stdout.into())), None).boxed();
    while let Some(line) = lines.next().await {
        line.map_err(|e| texts(&e))?;
    }
    Ok(())
}

/// An engine that belongs to one test: with its own folder, socket and containerd, on nobody's network; gone with this value.
pub struct OwnEngine {
    folder: tempfile::TempDir,
    /// Whether it leaves containers alone when it is started anew.
    keeps: bool,
    dockerd: Option<Child>,
}

impl OwnEngine {
    /// Starts one, with the test image.
    pub async fn start(keeps: bool) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("an engine of its own needs root".to_owned());
        }
        let folder = tempfile::Builder::new().prefix("mosaic-dockerd-").tempdir().map_err(|e| e.to_string())?;
        let mut own = Self { folder, keeps, dockerd: None };
        own.up().await?;
        let docker = Docker::connect_with_host(&own.host()).map_err(|e| e.to_string())?;
        import_into(&docker, BUSYBOX, &[]).await?;
        Ok(own)
    }

    /// Its address.
    pub fn host(&self) -> String {
        format!("unix://{}/docker.sock", self.folder.path().display())
    }

    pub fn client(&self) -> Engine {
        Engine::connect(Some(&self.host())).unwrap()
    }

    /// Starts it (again) and waits until it answers.
    pub async fn up(&mut self) -> Result<(), String> {
        let at = |name: &str| self.folder.path().join(name);
        for left in ["docker.pid", "exec/containerd/containerd.pid"] {
            let _ = fs::remove_file(at(left));
        }
        let log = fs::OpenOptions::new().create(true).append(true).open(at("log")).map_err(|e| e.to_string())?;
        let mut command = Command::new("dockerd");
        command.arg("--host").arg(self.host()).arg("--data-root").arg(at("data")).arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("docker.pid")).args(["--bridge", "none", "--iptables=false", "--ip-masq=false"]);
        command.args(self.keeps.then_some("--live-restore"));
        // SAFETY: unshare is async-signal-safe. On the host's network it would take the usual engine's bridge for left over, and remove it.
        unsafe {
            command.pre_exec(|| Ok(rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET)?));
        }
        command.stdin(Stdio::null()).stdout(log.try_clone().map_err(|e| e.to_string())?).stderr(log);
        self.dockerd = Some(command.spawn().map_err(|e| format!("dockerd cannot be started: {e}"))?);
        let until = Instant::now() + Duration::from_secs(60);
        while self.client().about().await.is_err() {
            let ended = self.dockerd.as_mut().is_some_and(|child| child.try_wait().is_ok_and(|ended| ended.is_some()));
            if ended || Instant::now() > until {
                return Err(format!("dockerd does not answer: {}", fs::read_to_string(at("log")).unwrap_or_default()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    fn pids(&self) -> Vec<rustix::process::Pid> {
        let containerd = fs::read_to_string(self.folder.path().join("exec/containerd/containerd.pid"));
        let containerd = containerd.ok().and_then(|text| text.trim().parse().ok());
        let dockerd = self.dockerd.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        [dockerd, containerd].into_iter().flatten().filter_map(rustix::process::Pid::from_raw).collect()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        for pid in self.pids() {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// SIGKILLs it.
    pub fn kill(&mut self) {
        self.signal(rustix::process::Signal::KILL);
        if let Some(mut child) = self.dockerd.take() {
            let _ = child.wait();
        }
    }

    /// It answers nobody, and forgets nothing.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }
}

impl Drop for OwnEngine {
    fn drop(&mut self) {
        self.thaw();
        self.kill();
        // Shims and what runs below them name its folder.
        let name = self.folder.path().file_name().unwrap().to_string_lossy().into_owned();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid.filter(|_| String::from_utf8_lossy(&line).contains(&name)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for target in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)).filter(|target| target.contains(&name)) {
            let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}
