//! The admin socket as the command line uses it: one small HTTP/1.1 request on a Unix socket, with short time limits and nothing shared.
//!
//! `GET /v1/ping` tells within [`PING_TIME_MAX`] whether the lane of a controller answers; `POST /v1/kill` takes a `KillRequest` and answers
//! with `Receipts`. The socket is in the state folder, which only its owner can enter.

use super::KILL_TIME_MAX;
use super::receipt::{KillRequest, Receipts};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// Name of the socket in the state folder.
pub const SOCKET_ADMIN: &str = "admin.sock";
/// Path of the look whether somebody answers.
pub const PATH_PING: &str = "/v1/ping";
/// Path of a kill.
pub const PATH_KILL: &str = "/v1/kill";
/// Who does not answer a ping for so long is stuck, and the command line acts by itself.
pub const PING_TIME_MAX: Duration = Duration::from_millis(500);
/// How much longer than a kill its answer is waited for.
const ANSWER_TIME_EXTRA: Duration = Duration::from_millis(1_500);
/// Longest answer: a receipt is a few hundred bytes.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Asks the lane of the controller that works on a state folder.
/// # Errors
/// Nobody answers there, or not in time, or not as a lane does.
pub fn ask(state: &Path, request: &KillRequest) -> io::Result<Receipts> {
    exchange(state, "GET", PATH_PING, b"", PING_TIME_MAX)?;
    let body = serde_json::to_vec(request)?;
    let answer = exchange(state, "POST", PATH_KILL, &body, KILL_TIME_MAX + ANSWER_TIME_EXTRA)?;
    Ok(serde_json::from_slice(&answer)?)
}

fn exchange(state: &Path, method: &str, path: &str, body: &[u8], patience: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + patience;
    // Through a descriptor of the folder: the path of a socket may have 108 bytes only.
    let folder = File::open(state)?;
    let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_ADMIN}", folder.as_raw_fd()))?;
    stream.set_write_timeout(Some(patience))?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: mosaic\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(&[head.as_bytes(), body].concat())?;
    let mut answer = Vec::new();
    let mut chunk = [0; 16 * 1024];
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {} ms", patience.as_millis())));
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut chunk) {
            Ok(0) => return body_of(&answer),
            Ok(length) if (answer.len() + length) as u64 <= ANSWER_BYTES_MAX => answer.extend_from_slice(&chunk[..length]),
            Ok(_) => return Err(io::Error::other("the answer is too long")),
            Err(e) if matches!(e.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(e) => return Err(e),
        }
    }
}

fn body_of(answer: &[u8]) -> io::Result<Vec<u8>> {
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n");
    let body = end.map(|end| answer[end + 4..].to_vec()).unwrap_or_default();
    if answer.starts_with(b"HTTP/1.1 200 ") {
        return Ok(body);
    }
    Err(io::Error::other(format!("the lane refused: {}", String::from_utf8_lossy(&body))))
}
