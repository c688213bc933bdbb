//! A Valkey server of a test's own, and a client that shares no code with the product.

use crate::skip::skip;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Longest wait for a server that starts.
const START_TIME_MAX: Duration = Duration::from_secs(20);
/// What makes acknowledged writes durable.
pub const DURABLE: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

/// A server on a loopback port with a folder of its own; both go when it is dropped.
pub struct Server {
    folder: tempfile::TempDir,
    pub port: u16,
    child: Option<Child>,
}

/// The server program, if there is one.
fn program() -> Option<PathBuf> {
    let named = std::env::var_os("MOSAIC_TEST_VALKEY_SERVER").map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("valkey-server"));
    named.into_iter().chain(found).find(|program| program.is_file())
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn arguments(port: u16, folder: &std::path::Path, flags: &[&str]) -> Vec<String> {
    let own = ["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir", folder.to_str().unwrap()];
    own.iter().chain(flags).map(|flag| (*flag).to_owned()).collect()
}

impl Server {
    /// Starts one for the named test, or says that it cannot.
    pub fn start(test: &str, flags: &[&str]) -> Option<Self> {
        if program().is_none() {
            skip(test, "there is no valkey-server: name one in MOSAIC_TEST_VALKEY_SERVER");
            return None;
        }
        let mut server = Self { folder: tempfile::tempdir().unwrap(), port: free_port(), child: None };
        server.begin(flags);
        server.answers();
        Some(server)
    }

    /// Starts it (again), on the data that it has, without waiting.
    pub fn begin(&mut self, flags: &[&str]) {
        let mut command = Command::new(program().unwrap());
        command.args(arguments(self.port, self.folder.path(), flags)).stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.spawn().unwrap());
    }

    /// Waits until it answers.
    pub fn answers(&self) {
        wait_for_answer(self.port);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Forgets everything that is on its disk; it must not run.
    pub fn forget(&self) {
        for entry in std::fs::read_dir(self.folder.path()).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
        }
    }

    /// A copy of its disk, and the way back to it.
    pub fn copy_disk(&self, to: &std::path::Path) {
        copy(self.folder.path(), to);
    }

    /// Puts a copy of a disk in the place of the present one; it must not run.
    pub fn restore_disk(&self, from: &std::path::Path) {
        self.forget();
        copy(from, self.folder.path());
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }

    /// Resident memory, in bytes.
    pub fn resident_bytes(&self) -> u64 {
        super::soak::resident_bytes(self.child.as_ref().unwrap().id())
    }

    pub fn url(&self) -> String {
        format!("valkey://127.0.0.1:{}", self.port)
    }

    /// Asks it something; an error answer is a text that begins with `-`.
    pub fn ask(&self, words: &[&str]) -> Answer {
        ask(self.port, words).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn wait_for_answer(port: u16) {
    let started = Instant::now();
    while !ask(port, &["PING"]).is_ok_and(|answer| answer.text() == "PONG") {
        assert!(started.elapsed() < START_TIME_MAX, "the server on port {port} does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The address of a server that the tests of this process share. It ends with the process. Where there is none the test that asks is skipped.
pub fn shared_url() -> Option<String> {
    static SHARED: OnceLock<Option<(String, Option<Child>, tempfile::TempDir)>> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        if let Some(url) = std::env::var("VALKEY_URL").ok().filter(|url| !url.is_empty()) {
            return Some((url, None, folder));
        }
        let port = free_port();
        // The shell waits on a pipe that closes with this process, however it ends, and takes the server and its folder along.
        let script = "\"$0\" \"$@\" >/dev/null & server=$!; read -r _; kill -9 $server; rm -rf \"$FOLDER\"";
        let mut command = Command::new("sh");
        command.args(["-c", script]).arg(program()?).args(arguments(port, folder.path(), &DURABLE));
        command.env("FOLDER", folder.path()).stdin(Stdio::piped()).stdout(Stdio::null());
        let child = command.spawn().unwrap();
        wait_for_answer(port);
        Some((format!("valkey://127.0.0.1:{port}"), Some(child), folder))
    });
    if shared.is_none() {
        let test = std::thread::current().name().unwrap_or("valkey").to_owned();
        skip(&test, "there is no Valkey server: set VALKEY_URL or MOSAIC_TEST_VALKEY_SERVER");
    }
    shared.as_ref().map(|(url, _, _)| url.clone())
}

/// What a server answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    None,
    Text(String),
    List(Vec<Answer>),
}

impl Answer {
    pub fn text(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::None | Self::List(_) => "",
        }
    }

    pub fn list(&self) -> &[Self] {
        match self {
            Self::List(list) => list,
            Self::None | Self::Text(_) => &[],
        }
    }

    /// Names and values of a flat list.
    pub fn pairs(&self) -> std::collections::BTreeMap<String, String> {
        self.list().chunks_exact(2).map(|pair| (pair[0].text().to_owned(), pair[1].text().to_owned())).collect()
    }
}

/// One command on a connection of its own.
fn ask(port: u16, words: &[&str]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut request = format!("*{}\r\n", words.len());
    for word in words {
        request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    stream.write_all(request.as_bytes())?;
    read(&mut BufReader::new(stream))
}

fn read(stream: &mut BufReader<TcpStream>) -> std::io::Result<Answer> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(std::io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = line.trim_end().split_at(1);
    Ok(match kind {
        "$" if rest != "-1" => {
            let mut bytes = vec![0; rest.parse::<usize>().unwrap() + 2];
            stream.read_exact(&mut bytes)?;
            bytes.truncate(bytes.len() - 2);
            Answer::Text(String::from_utf8_lossy(&bytes).into_owned())
        }
        "*" if rest != "-1" => Answer::List((0..rest.parse::<usize>().unwrap()).map(|_| read(stream)).collect::<Result<_, _>>()?),
        "$" | "*" => Answer::None,
        "-" => Answer::Text(format!("-{rest}")),
        _ => Answer::Text(rest.to_owned()),
    })
}
