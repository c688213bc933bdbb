//! The link from within a pod: HTTP/1.1 over TLS, to the address that the pod was given and to nobody who does not have the certificate.
//!
//! `Line` keeps one connection and asks one thing at a time, again on a new connection when one broke. `begin` sends one request on a thread
//! and a connection of its own and gives the answer as a socket can be polled, so that init's loop is the same as everywhere. No name service:
//! addresses come as numbers, and the certificate is known by a name of ours.

use crate::inside::wire::{
    ENV_AUTHORITY, ENV_LINK, ENV_RUN, ENV_TOKEN, HEADER_NUMBER, HEADER_OFFSET, HEADER_RUN, HEADER_SECRET, LINK_NAME,
};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

/// Longest time until a connection stands.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 8 * 1024;
/// Longest body of an answer.
const BODY_BYTES_MAX: usize = 32 << 20;

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// How to reach the controller.
pub struct Dialer {
    addresses: Vec<SocketAddr>,
    config: Arc<ClientConfig>,
    run: String,
    token: String,
}

/// What a request is about, beside its body.
#[derive(Debug, Clone, Copy, Default)]
pub struct About<'a> {
    /// The session secret.
    pub secret: &'a str,
    /// Number of the whole.
    pub number: u64,
    /// Where in the whole the body begins.
    pub offset: u64,
}

impl Dialer {
    /// Reads what the pod was given, by the names of `inside::wire`; in a pod from its environment.
    /// # Errors
    /// Something is missing or cannot be read.
    pub fn new(given: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let read = |name: &str| given(name).ok_or_else(|| format!("{name} is not set"));
        let addresses = read(ENV_LINK)?.split(',').map(str::parse).collect::<Result<Vec<SocketAddr>, _>>();
        let addresses = addresses.map_err(|e| format!("{ENV_LINK}: {e}"))?;
        let authority = from_hex(&read(ENV_AUTHORITY)?).ok_or_else(|| format!("{ENV_AUTHORITY} is no certificate"))?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from(authority)).map_err(|e| format!("{ENV_AUTHORITY}: {e}"))?;
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| e.to_string())?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { addresses, config: Arc::new(config), run: read(ENV_RUN)?, token: read(ENV_TOKEN)? })
    }

    fn connect(&self, patience: Duration) -> io::Result<Stream> {
        let mut failed = io::Error::from(io::ErrorKind::NotFound);
        for address in &self.addresses {
            match TcpStream::connect_timeout(address, CONNECT_PATIENCE.min(patience)) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    let name = ServerName::try_from(LINK_NAME).expect("a name");
                    let client = ClientConnection::new(self.config.clone(), name).map_err(io::Error::other)?;
                    return Ok(StreamOwned::new(client, stream));
                }
                Err(e) => failed = e,
            }
        }
        Err(failed)
    }

    fn head(&self, path: &str, about: About<'_>, length: usize) -> String {
        let Self { run, token, .. } = self;
        let About { secret, number, offset } = about;
        format!(
            "POST {path} HTTP/1.1\r\nHost: mosaic\r\nAuthorization: Bearer {token}\r\n{HEADER_RUN}: {run}\r\n{HEADER_SECRET}: {secret}\r\n\
             {HEADER_NUMBER}: {number}\r\n{HEADER_OFFSET}: {offset}\r\nContent-Length: {length}\r\n\r\n"
        )
    }

    /// Sends a request and returns where its answer can be read, as one that ends with its connection. Without success it ends at once.
    /// # Errors
    /// No descriptors or threads are left.
    pub fn begin(self: &Arc<Self>, path: &'static str, body: Vec<u8>, patience: Duration) -> io::Result<UnixStream> {
        let (ours, mut theirs) = UnixStream::pair()?;
        let dialer = self.clone();
        std::thread::Builder::new().name("mosaic-link".to_owned()).spawn(move || {
            let mut line = Line { dialer, stream: None };
            if let Ok((status, body)) = line.ask_once(path, About::default(), &body, patience) {
                let head = format!("HTTP/1.1 {status} x\r\n\r\n");
                let _ = theirs.write_all(head.as_bytes()).and_then(|()| theirs.write_all(&body));
            }
        })?;
        Ok(ours)
    }
}

/// One connection, made anew when it broke.
pub struct Line {
    dialer: Arc<Dialer>,
    stream: Option<Stream>,
}

impl Line {
    /// A line that is not connected yet.
    #[must_use]
    pub fn new(dialer: Arc<Dialer>) -> Self {
        Self { dialer, stream: None }
    }

    /// Asks once; the answer's status and body.
    /// # Errors
    /// No whole answer in time: whether it was heard is unknown.
    pub fn ask_once(&mut self, path: &str, about: About<'_>, body: &[u8], patience: Duration) -> io::Result<(u16, Vec<u8>)> {
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.dialer.connect(patience)?,
        };
        stream.sock.set_read_timeout(Some(patience))?;
        stream.sock.set_write_timeout(Some(patience))?;
        stream.write_all(self.dialer.head(path, about, body.len()).as_bytes())?;
        stream.write_all(body)?;
        stream.flush()?;
        let answer = read_answer(&mut stream)?;
        self.stream = Some(stream);
        Ok(answer)
    }
}

fn read_answer(stream: &mut Stream) -> io::Result<(u16, Vec<u8>)> {
    let odd = || io::Error::new(io::ErrorKind::InvalidData, "the answer is not HTTP");
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break at;
        }
        let mut chunk = [0; 4096];
        let length = stream.read(&mut chunk)?;
        if length == 0 || bytes.len() + length > HEAD_BYTES_MAX + chunk.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&chunk[..length]);
    };
    let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(odd)?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:")).and_then(|length| length.trim().parse().ok());
    let length: usize = length.filter(|length| *length <= BODY_BYTES_MAX).ok_or_else(odd)?;
    let mut body = bytes.split_off(end + 4);
    let had = body.len().min(length);
    body.resize(length, 0);
    stream.read_exact(&mut body[had..])?;
    Ok((status, body))
}

/// Bytes as text.
#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes everything");
        text
    })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
    let (pairs, rest) = digits.as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| high << 4 | low).collect())
}
