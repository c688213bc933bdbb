//! Real servers of git repositories on loopback: `git http-backend` behind TLS with basic authentication, and sshd. Each is a child that
//! is killed by its pid when dropped.

pub mod faults;

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// User name that the https server expects.
pub const USER: &str = "robot";

/// Ends its process with itself.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn run(folder: &Path, program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).current_dir(folder).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// What is missing for the https tests here.
pub fn https_missing() -> Option<&'static str> {
    let works = |program: &str, argument: &str| Command::new(program).arg(argument).output().is_ok_and(|out| out.status.success());
    if !works("openssl", "version") {
        Some("openssl is missing (Debian: apt install openssl)")
    } else if !works("python3", "--version") {
        Some("python3 is missing (Debian: apt install python3)")
    } else {
        None
    }
}

/// Writes a file that only we may read.
pub fn private(path: &Path, text: &str) -> PathBuf {
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
    path.to_owned()
}

/// Authorities and certificates in a folder: `ca.pem` signs `good.pem` and `expired.pem`; `other.pem` is an authority that signed nothing.
pub fn make_certificates(folder: &Path) {
    let authority = |name: &str| {
        let (key, pem, subject) = (format!("{name}.key"), format!("{name}.pem"), format!("/CN=Test {name}"));
        let extension = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        let request = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", &subject, "-keyout", &key, "-out", &pem];
        run(folder, "openssl", &[&request[..], &extension[..]].concat());
    };
    authority("ca");
    authority("other");
    std::fs::write(folder.join("ext"), "subjectAltName=IP:127.0.0.1,DNS:localhost\nextendedKeyUsage=serverAuth\n").unwrap();
    std::fs::write(folder.join("ext-name"), "subjectAltName=DNS:elsewhere.example\nextendedKeyUsage=serverAuth\n").unwrap();
    run(folder, "openssl", &["req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-keyout", "server.key", "-out", "csr"]);
    for (name, days, extensions) in [("good", "30", "ext"), ("expired", "-1", "ext"), ("misnamed", "30", "ext-name")] {
        let out = format!("{name}.pem");
        let sign = ["x509", "-req", "-in", "csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"];
        run(folder, "openssl", &[&sign[..], &["-days", days, "-extfile", extensions, "-out", &out]].concat());
    }
}

/// A running https server.
pub struct Https {
    pub port: u16,
    _process: Process,
}

impl Https {
    /// Serves the repositories beneath `repositories`, with a certificate of `keys`.
    pub fn start(repositories: &Path, keys: &Path, certificate: &str, token_file: &Path, mode: &str) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/servers/git_https.py");
        let mut command = Command::new("python3");
        command.arg(script).arg(repositories).arg(keys.join(format!("{certificate}.pem"))).arg(keys.join("server.key"));
        command.arg(USER).arg(token_file).arg(mode).stdout(Stdio::piped()).stdin(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { port: line.trim().parse().expect("the server tells its port"), _process: Process(child) }
    }

    pub fn url(&self, path: &str) -> String {
        format!("https://127.0.0.1:{}/{path}", self.port)
    }
}

/// What is missing for the ssh tests here.
pub fn ssh_missing() -> Option<&'static str> {
    let exists = |path: &str| Path::new(path).is_file();
    if !exists("/usr/sbin/sshd") {
        Some("sshd is missing (Debian: apt install openssh-server)")
    } else if !exists("/usr/bin/ssh") || !exists("/usr/bin/ssh-keygen") {
        Some("ssh is missing (Debian: apt install openssh-client)")
    } else if !rustix::process::geteuid().is_root() {
        Some("sshd serves one who logs in only as root")
    } else {
        None
    }
}

/// A running sshd whose one user is root, with the key `client`; `known` and `wrong` are known-hosts files.
pub struct Ssh {
    pub port: u16,
    pub folder: PathBuf,
    _process: Process,
}

impl Ssh {
    pub fn start(folder: &Path) -> Self {
        for name in ["host", "other", "client", "stranger"] {
            run(folder, "ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", name, "-f", name]);
        }
        std::fs::copy(folder.join("client.pub"), folder.join("authorized")).unwrap();
        std::fs::set_permissions(folder.join("authorized"), PermissionsExt::from_mode(0o600)).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = format!(
            "Port {port}\nListenAddress 127.0.0.1\nHostKey {0}/host\nPidFile none\nAuthorizedKeysFile {0}/authorized\nStrictModes no\n\
             UsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\nX11Forwarding no\n",
            folder.display()
        );
        std::fs::write(folder.join("sshd_config"), text).unwrap();
        for (file, key) in [("known", "host.pub"), ("wrong", "other.pub")] {
            let key = std::fs::read_to_string(folder.join(key)).unwrap();
            std::fs::write(folder.join(file), format!("[127.0.0.1]:{port} {key}")).unwrap();
        }
        std::fs::write(folder.join("empty"), "").unwrap();
        // Privilege separation wants its folder, which the service would make.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let mut command = Command::new("/usr/sbin/sshd");
        command.arg("-D").arg("-e").arg("-f").arg(folder.join("sshd_config")).stdin(Stdio::null()).stderr(Stdio::null());
        let process = Process(command.spawn().unwrap());
        let started = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(started.elapsed() < Duration::from_secs(20), "sshd does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { port, folder: folder.to_owned(), _process: process }
    }

    pub fn url(&self, path: &str) -> String {
        format!("ssh://root@127.0.0.1:{}/{}", self.port, path.trim_start_matches('/'))
    }
}
