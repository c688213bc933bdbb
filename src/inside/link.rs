//! init's side of the link: one request at a time, without blocking, each on a connection of its own; in a pod a thread has the connection.
//!
//! The control folder was opened on the host before the root changed; the socket in it is looked up at each request, so that one which
//! a restarted controller has bound anew is found. The agent cannot see the folder: it is in no mount of the sandbox.

use crate::inside::dial::Dialer;
use crate::inside::system;
use crate::inside::wire::SOCKET_CONTROL;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Longest answer.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Waiting time after a failed request.
const RETRY_MILLIS: u64 = 100;

/// Where the controller is asked.
pub enum Way {
    /// At the control socket in this folder.
    Socket(OwnedFd),
    /// Over the network.
    Tls(Arc<Dialer>),
}

/// A client of the link.
pub struct LinkClient {
    way: Way,
    request: Option<Request>,
    retry_at: u64,
}

struct Request {
    stream: UnixStream,
    answer: Vec<u8>,
    give_up_at: u64,
}

impl LinkClient {
    /// A client that asks there.
    #[must_use]
    pub fn new(way: Way) -> Self {
        Self { way, request: None, retry_at: 0 }
    }

    /// Whether no request is under way and one may be sent now.
    #[must_use]
    pub fn is_idle(&self, now: u64) -> bool {
        self.request.is_none() && now >= self.retry_at
    }

    /// What to poll for reading.
    #[must_use]
    pub fn readable(&self) -> Option<BorrowedFd<'_>> {
        self.request.as_ref().map(|request| request.stream.as_fd())
    }

    /// When to look again though nothing is readable.
    #[must_use]
    pub fn wake_at(&self) -> u64 {
        self.request.as_ref().map_or(self.retry_at, |request| request.give_up_at)
    }

    /// Drops what is under way; a new request may be sent at once.
    pub fn reset(&mut self) {
        self.request = None;
        self.retry_at = 0;
    }

    /// Sends a request; without success it is as if the answer had failed.
    pub fn send(&mut self, path: &'static str, body: &impl Serialize, patience_millis: u64) {
        let now = system::boot_millis();
        match self.try_send(path, body, patience_millis) {
            Ok(stream) => self.request = Some(Request { stream, answer: Vec::new(), give_up_at: now + patience_millis }),
            Err(_) => self.retry_at = now + RETRY_MILLIS,
        }
    }

    fn try_send(&self, path: &'static str, body: &impl Serialize, patience_millis: u64) -> io::Result<UnixStream> {
        let body = serde_json::to_vec(body)?;
        let folder = match &self.way {
            Way::Socket(folder) => folder,
            Way::Tls(dialer) => {
                let stream = dialer.begin(path, body, Duration::from_millis(patience_millis))?;
                stream.set_nonblocking(true)?;
                return Ok(stream);
            }
        };
        let mut stream = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_CONTROL}", folder.as_raw_fd()))?;
        stream.set_nonblocking(true)?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: mosaic\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        // A request is far smaller than the buffer of a fresh socket: it fits whole or the connection is of no use.
        stream.write_all(&[head.as_bytes(), &body].concat())?;
        Ok(stream)
    }

    /// Takes in what has come. `None`: not complete yet, or failed (then the client is idle again after a moment).
    pub fn receive<T: DeserializeOwned>(&mut self) -> Option<T> {
        let now = system::boot_millis();
        let request = self.request.as_mut()?;
        let ended = loop {
            let mut chunk = [0; 4096];
            match request.stream.read(&mut chunk) {
                Ok(0) => break true,
                Ok(length) if request.answer.len() + length <= ANSWER_BYTES_MAX => request.answer.extend_from_slice(&chunk[..length]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break now >= request.give_up_at,
                Ok(_) | Err(_) => break true,
            }
        };
        if !ended {
            return None;
        }
        let answer = parse(&request.answer);
        self.request = None;
        self.retry_at = if answer.is_some() { 0 } else { now + RETRY_MILLIS };
        answer
    }
}

/// The JSON body of a complete answer with status 200.
fn parse<T: DeserializeOwned>(answer: &[u8]) -> Option<T> {
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n")?;
    if !answer.starts_with(b"HTTP/1.1 200 ") {
        return None;
    }
    serde_json::from_slice(&answer[end + 4..]).ok()
}
